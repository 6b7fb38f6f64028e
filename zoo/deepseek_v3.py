"""DeepSeek-V3 (DeepSeek-AI 2024, arXiv 2412.19437): latent attention; after a few dense layers, many small experts
behind a sigmoid router balanced by a selection bias, beside shared ones. Kimi K2 (Kimi team 2025, arXiv 2507.20534)
is this with other numbers."""

from typing import Any

from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.latent import LatentAttention
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.mtp import MTP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope, Yarn
from ..layers.router import Groups
from .deepseek import LATENT, SHARED, experts, read_experts, read_latent, write_experts, write_latent
from .family import EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS, PREDICTION, Family, presets
from .fields import Fields, read_common, read_prediction, write_common


def read(c: Fields) -> Spec:
    c.only("hidden_act", "silu")
    c.only("moe_layer_freq", 1)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    moe = read_experts(c)
    dense = (GatedMLP(ffn=c.int("intermediate_size")),) * c.int("first_k_dense_replace", 3)
    return Spec(
        **read_common(c),
        attention=read_latent(c),
        mlp=(*dense, moe, ...) if dense else moe,
        block=pre_norm(norm),
        final_norm=norm,
        mtp=read_prediction(c),
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    mlps = [layer.mlp for layer in spec.layers]
    dense = [mlp for mlp in mlps if isinstance(mlp, GatedMLP)]
    moe = next(mlp for mlp in [*mlps, *spec.mlp] if isinstance(mlp, MoE))
    return write_common(spec) | {
        **write_latent(spec.attention[0], dialect),
        "intermediate_size": dense[0].ffn if dense else 18432,
        "first_k_dense_replace": len(dense),
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": spec.mtp.depth if spec.mtp else 0,
        **write_experts(moe),
        "scoring_func": moe.router.score,
        "topk_method": "noaux_tc",
        "hidden_act": "silu",
        "rms_norm_eps": spec.final_norm.eps,
    }


def model(attention: LatentAttention, dense: int, ffn: int, moe: MoE, width: int, depth: int) -> Spec:
    norm = RMSNorm(eps=1e-6)
    return Spec(
        vocab=129_280,
        width=width,
        depth=depth,
        attention=attention,
        mlp=(*(GatedMLP(ffn=ffn),) * dense, moe, ...),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=163_840,
        bos_id=0,
        eos_ids=(1,),
    )


def latent(heads: int, theta: float, yarn: Yarn) -> LatentAttention:
    rope = Rope(dim=64, theta=theta, scaling=yarn, interleaved=True)
    return LatentAttention(heads=heads, nope_dim=128, value_dim=128, kv_rank=512, q_rank=1536, rope=rope)


YARN = Yarn(factor=40.0, original_length=4096, mscale=1.0, mscale_all_dim=1.0)
V3 = model(latent(128, 1e4, YARN), 3, 18432, experts(256, 8, 2048, Groups(count=8, kept=4), 2.5), width=7168, depth=61)
V3 = V3.replace(mtp=MTP())
K2_YARN = Yarn(factor=32.0, original_length=4096, fast=1.0, mscale=1.0, mscale_all_dim=1.0)
K2 = model(latent(64, 5e4, K2_YARN), 1, 18432, experts(384, 8, 2048, None, 2.827), width=7168, depth=61)
NANO = model(
    LatentAttention(heads=4, nope_dim=32, value_dim=32, kv_rank=48, q_rank=64, rope=Rope(dim=16, interleaved=True)),
    dense=1,
    ffn=320,
    moe=experts(16, 4, 64, Groups(count=4, kept=2), 2.5),
    width=128,
    depth=4,
)

FAMILY = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    aliases=("kimi_k2",),
    read=read,
    write=write,
    weights=EMBEDDINGS + PRE_NORMS + LATENT + MLP + EXPERTS + SHARED + PREDICTION,
    fused=FUSED_EXPERTS,
    presets=presets(
        "deepseek_v3",
        {
            "deepseek-v3": V3,
            "kimi-k2": K2.replace(vocab=163_840, max_length=131_072, bos_id=163_584, eos_ids=(163_585,)),
            "deepseek-v3-nano": NANO.replace(vocab=257, max_length=4096, bos_id=256, eos_ids=(256,)),
        },
    ),
)
