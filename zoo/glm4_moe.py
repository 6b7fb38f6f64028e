"""GLM-4.5, 4.5-Air and 4.6 (GLM team 2025, arXiv 2508.06471): grouped-query attention that rotates half of each head,
with a bias on queries, keys and values and, in the largest, QK-norm; the experts and router of DeepSeek-V3."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.mtp import MTP
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Rope
from ..layers.router import Groups
from .deepseek import SHARED, experts, read_experts, write_experts
from .family import (
    ATTENTION,
    EMBEDDINGS,
    EXPERTS,
    FUSED_EXPERTS,
    HEAD_NORMS,
    MLP,
    PRE_NORMS,
    PREDICTION,
    Family,
    presets,
)
from .fields import Fields, read_common, read_prediction, read_rope, write_common, write_rope

CLASS_DEFAULTS = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}


def read(c: Fields) -> Spec:
    c = c.over(CLASS_DEFAULTS)
    c.only("hidden_act", "silu")
    c.only("attention_dropout", 0.0)
    heads, norm = c.int("num_attention_heads", least=1), RMSNorm(eps=c.float("rms_norm_eps", 1e-5))
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    dense = (GatedMLP(ffn=c.int("intermediate_size")),) * c.int("first_k_dense_replace", 1)
    moe = read_experts(c)
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", 8),
            head_dim=head_dim,
            rope=read_rope(c, head_dim, share=0.5),
            qk_norm=QKNorm(norm=norm) if c.bool("use_qk_norm", False) else None,
            bias="qkv" if c.bool("attention_bias", False) else "",
        ),
        mlp=(*dense, moe, ...) if dense else moe,
        block=pre_norm(norm),
        final_norm=norm,
        mtp=read_prediction(c),
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, mlps = spec.attention[0], [layer.mlp for layer in spec.layers]
    dense = [mlp for mlp in mlps if isinstance(mlp, GatedMLP)]
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **write_rope(attention.rope, dialect, attention.head_dim),
        "use_qk_norm": attention.qk_norm is not None,
        "attention_bias": bool(attention.bias),
        "attention_dropout": 0.0,
        "intermediate_size": dense[0].ffn if dense else 10944,
        "first_k_dense_replace": len(dense),
        "num_nextn_predict_layers": spec.mtp.depth if spec.mtp else 0,
        **write_experts(next(mlp for mlp in [*mlps, *spec.mlp] if isinstance(mlp, MoE))),
        "hidden_act": "silu",
        "rms_norm_eps": spec.final_norm.eps,
    }


def model(width: int, depth: int, heads: int, kv_heads: int, dim: int, dense: int, ffn: int, moe: MoE) -> Spec:
    norm = RMSNorm(eps=1e-5)
    rope = Rope(dim=dim // 2, theta=1e6)
    return Spec(
        vocab=151_552,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope, bias="qkv"),
        mlp=(*(GatedMLP(ffn=ffn),) * dense, moe, ...),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=131_072,
        eos_ids=(151_329, 151_336, 151_338),
        pad_id=151_329,
    )


NORMED = {"attention.qk_norm": QKNorm(norm=RMSNorm(eps=1e-5))}
GLM = model(5120, 92, 96, 8, 128, 3, 12288, experts(160, 8, 1536, None, 2.5)).replace(NORMED, mtp=MTP())
AIR = model(4096, 46, 96, 8, 128, 1, 10944, experts(128, 8, 1408, None, 1.0)).replace(mtp=MTP())
NANO = model(128, 4, 6, 2, 32, 1, 320, experts(16, 4, 64, Groups(count=4, kept=2), 2.5)).replace(NORMED)

# The published sizes; token ids too.
FAMILY = Family(
    name="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    read=read,
    write=write,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + HEAD_NORMS + MLP + EXPERTS + SHARED + PREDICTION,
    fused=FUSED_EXPERTS,
    presets=presets(
        "glm4_moe",
        {
            "glm-4.5": GLM,
            "glm-4.5-air": AIR,
            "glm-4.6": GLM.replace(max_length=202_752),
            "glm4-moe-nano": NANO.replace(vocab=257, max_length=4096, bos_id=256, eos_ids=(256,), pad_id=None),
        },
    ),
)
