"""GLM-4.7-Flash (GLM team 2026): GLM-4.5's experts and router with the latent attention of DeepSeek-V3."""

from typing import Any

from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.latent import LatentAttention
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.mtp import MTP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from .deepseek import LATENT, SHARED, experts, read_experts, read_latent, write_experts, write_latent
from .family import EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS, PREDICTION, Family, presets, tailed
from .fields import Fields, read_common, read_prediction, write_common

DENSE, SPARSE = "dense", "sparse"
CLASS_DEFAULTS = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8}


def read(c: Fields) -> Spec:
    c = c.over(CLASS_DEFAULTS)
    norm, depth = RMSNorm(eps=c.float("rms_norm_eps", 1e-5)), c.int("num_hidden_layers")
    kinds = c.list("mlp_layer_types", [DENSE] + [SPARSE] * (depth - 1))
    if len(kinds) != depth or any(kind not in (DENSE, SPARSE) for kind in kinds):
        raise ValueError(
            f"config field 'mlp_layer_types' must be {depth} of {DENSE!r} and {SPARSE!r}, not {kinds!r:.80}"
        )
    c.only("first_k_dense_replace", [*kinds, SPARSE].index(SPARSE))  # transformers does not read it
    mlps = {DENSE: GatedMLP(ffn=c.int("intermediate_size")), SPARSE: read_experts(c)}
    return Spec(
        **read_common(c),
        attention=read_latent(c),
        mlp=tailed([mlps[kind] for kind in kinds]),
        block=pre_norm(norm),
        final_norm=norm,
        mtp=read_prediction(c),
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    mlps = [layer.mlp for layer in spec.layers]
    return write_common(spec) | {
        **write_latent(spec.attention[0], dialect),
        "intermediate_size": next((mlp.ffn for mlp in mlps if isinstance(mlp, GatedMLP)), 10240),
        "mlp_layer_types": [SPARSE if isinstance(mlp, MoE) else DENSE for mlp in mlps],
        "num_nextn_predict_layers": spec.mtp.depth if spec.mtp else 0,
        **write_experts(next(mlp for mlp in mlps if isinstance(mlp, MoE))),
        "rms_norm_eps": spec.final_norm.eps,
    }


def model(width: int, depth: int, ffn: int, moe: MoE, attention: LatentAttention) -> Spec:
    norm = RMSNorm(eps=1e-5)
    return Spec(
        vocab=154_880,
        width=width,
        depth=depth,
        attention=attention,
        mlp=(GatedMLP(ffn=ffn), moe, ...),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=202_752,
        eos_ids=(154_820, 154_827, 154_829),
        pad_id=154_820,
    )


ROPE = Rope(dim=64, theta=1e6, interleaved=True)
FLASH = LatentAttention(heads=20, nope_dim=192, value_dim=256, kv_rank=512, q_rank=768, rope=ROPE)
SMALL = LatentAttention(heads=4, nope_dim=24, value_dim=32, kv_rank=48, q_rank=64, rope=Rope(dim=8, interleaved=True))
NANO = model(128, 4, 320, experts(16, 4, 64, None, 1.8), SMALL)

# Published numbers, all of them.
FAMILY = Family(
    name="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    read=read,
    write=write,
    fixed={"hidden_act": "silu", "partial_rotary_factor": 1.0},
    weights=EMBEDDINGS + PRE_NORMS + LATENT + MLP + EXPERTS + SHARED + PREDICTION,
    fused=FUSED_EXPERTS,
    presets=presets(
        "glm4_moe_lite",
        {
            "glm-4.7-flash": model(2048, 47, 10240, experts(64, 4, 1536, None, 1.8), FLASH).replace(mtp=MTP()),
            "glm4-moe-lite-nano": NANO.replace(vocab=257, max_length=4096, bos_id=256, eos_ids=(256,), pad_id=None),
        },
    ),
)
