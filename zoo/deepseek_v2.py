"""DeepSeek-V2 and V2-Lite (DeepSeek-AI 2024, arXiv 2405.04434): latent attention, and many small experts behind a
softmax router, in V2 limited to the groups whose best expert scores highest, beside shared ones."""

from typing import Any

from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.latent import LatentAttention
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.rope import Rope, Yarn
from ..layers.router import Groups, Router
from . import deepseek_v3
from .deepseek import LATENT, SHARED, read_latent
from .family import EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS, Family, presets
from .fields import Fields, read_common

GREEDY, GROUPED = "greedy", "group_limited_greedy"

FIXED = {
    "hidden_act": "silu",
    "scoring_func": "softmax",
    "norm_topk_prob": False,  # transformers takes it for false whatever it says
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "rope_interleave": True,
}


def read(c: Fields) -> Spec:
    ffn, norm = c.int("moe_intermediate_size", 1407), RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    count, kept = c.int("n_group", 1, least=1), c.int("topk_group", 1, least=1)
    grouped = c.choice("topk_method", GREEDY, (GREEDY, GROUPED)) == GROUPED
    router = Router(
        top_k=c.int("num_experts_per_tok"),
        groups=Groups(count=count, kept=kept, best=1) if grouped else None,
        renormalise=False,
        scale=c.float("routed_scaling_factor", 1.0),
    )
    shared = GatedMLP(ffn=ffn * c.int("n_shared_experts", 2, least=1))
    moe = MoE(experts=c.int("n_routed_experts", 64), ffn=ffn, router=router, shared=shared)
    dense = (GatedMLP(ffn=c.int("intermediate_size")),) * c.int("first_k_dense_replace", 0)
    return Spec(
        **read_common(c),
        attention=read_latent(c),
        mlp=(*dense, moe, ...) if dense else moe,
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    router = next(layer.mlp.router for layer in spec.layers if isinstance(layer.mlp, MoE))
    return deepseek_v3.write(spec, dialect) | {"topk_method": GROUPED if router.groups else GREEDY}


def model(
    width: int,
    depth: int,
    ffn: int,
    experts: int,
    expert_ffn: int,
    top_k: int,
    attention: LatentAttention,
    **router: Any,
) -> Spec:
    norm = RMSNorm(eps=1e-6)
    moe = MoE(
        experts=experts,
        ffn=expert_ffn,
        router=Router(top_k=top_k, renormalise=False, **router),
        shared=GatedMLP(ffn=2 * expert_ffn),
    )
    return Spec(
        vocab=102_400,
        width=width,
        depth=depth,
        attention=attention,
        mlp=(GatedMLP(ffn=ffn), moe, ...),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=163_840,
        bos_id=100_000,
        eos_ids=(100_001,),
    )


def latent(heads: int, q_rank: int | None, mscale: float) -> LatentAttention:
    yarn = Yarn(factor=40.0, original_length=4096, mscale=mscale, mscale_all_dim=mscale)
    rope = Rope(dim=64, scaling=yarn, interleaved=True)
    return LatentAttention(heads=heads, nope_dim=128, value_dim=128, kv_rank=512, q_rank=q_rank, rope=rope)


NANO = LatentAttention(heads=4, nope_dim=32, value_dim=32, kv_rank=48, rope=Rope(dim=16, interleaved=True))
V2_GROUPS = Groups(count=8, kept=3, best=1)

# The published sizes; token ids too.
FAMILY = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    read=read,
    write=write,
    fixed=FIXED,
    weights=EMBEDDINGS + PRE_NORMS + LATENT + MLP + EXPERTS + SHARED,
    fused=FUSED_EXPERTS,
    presets=presets(
        "deepseek_v2",
        {
            "deepseek-v2": model(5120, 60, 12288, 160, 1536, 6, latent(128, 1536, 1.0), groups=V2_GROUPS, scale=16.0),
            "deepseek-v2-lite": model(2048, 27, 10944, 64, 1408, 6, latent(16, None, 0.707)),
            "deepseek-v2-nano": model(128, 4, 320, 16, 64, 4, NANO, groups=Groups(count=4, kept=2, best=1)).replace(
                vocab=257, max_length=4096, bos_id=256, eos_ids=(256,)
            ),
        },
    ),
)
