"""dots.llm1 (rednote-hilab 2025, arXiv 2506.05767): the attention of Qwen3, with a head of its own for every query; the
experts and router of DeepSeek-V3 without groups."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Rope
from .deepseek import SHARED, experts, read_experts, write_experts
from .family import (
    ATTENTION,
    EMBEDDINGS,
    EXPERTS,
    FUSED_EXPERTS,
    HEAD_NORMS,
    MLP,
    PLAIN,
    PRE_NORMS,
    Family,
    presets,
    shortest,
)
from .fields import Fields, layer_windows, read_common, read_rope, write_common, write_rope
from .qwen3 import write_windows

CLASS_DEFAULTS = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": False}


def read(c: Fields) -> Spec:
    c = c.over(CLASS_DEFAULTS)
    heads, norm = c.int("num_attention_heads", least=1), RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    head_dim, kv_heads = c.int("head_dim", c.int("hidden_size") // heads), c.int("num_key_value_heads", heads)
    rope, bias = read_rope(c, head_dim), "qkvo" if c.bool("attention_bias", False) else ""
    window = c.int("sliding_window", None if "sliding_window" in c.config else 4096)
    first = c.int("max_window_layers", 62)
    windows = layer_windows(c, window, lambda i: window is not None and i >= first)
    common: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "qk_norm": QKNorm(norm=norm)}
    dense = (GatedMLP(ffn=c.int("intermediate_size")),) * c.int("first_k_dense_replace", 0)
    moe = read_experts(c)
    return Spec(
        **read_common(c),
        attention=shortest(tuple(Attention(**common, rope=rope, window=seen, bias=bias) for seen in windows)),
        mlp=(*dense, moe, ...) if dense else moe,
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, mlps = spec.layers[0].attention, [layer.mlp for layer in spec.layers]
    dense = [mlp for mlp in mlps if isinstance(mlp, GatedMLP)]
    windows = {name: value for name, value in write_windows(spec).items() if name != "use_sliding_window"}
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **write_rope(attention.rope, dialect),
        **windows,
        "attention_bias": bool(attention.bias),
        "intermediate_size": dense[0].ffn if dense else 10944,
        "first_k_dense_replace": len(dense),
        **write_experts(next(mlp for mlp in [*mlps, *spec.mlp] if isinstance(mlp, MoE))),
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(width: int, depth: int, heads: int, head_dim: int, ffn: int, moe: MoE) -> Spec:
    norm = RMSNorm(eps=1e-5)
    rope = Rope(dim=head_dim, theta=1e7)
    return Spec(
        vocab=152_064,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=heads, head_dim=head_dim, rope=rope, qk_norm=QKNorm(norm=norm)),
        mlp=(GatedMLP(ffn=ffn), moe, ...),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=32_768,
        eos_ids=(151_643,),
    )


def two_shared(count: int, top_k: int, ffn: int) -> MoE:
    moe = experts(count, top_k, ffn, None, scale=2.5)
    return MoE(experts=count, ffn=ffn, router=moe.router, shared=GatedMLP(ffn=2 * ffn))


# Published numbers; vocabulary, depth, heads and hidden units are the class defaults of transformers too.
SIZES = {
    "dots.llm1-142b-a14b": size(4096, 62, 32, 128, 10944, two_shared(128, 6, 1408)),
    "dots1-nano": size(128, 4, 4, 32, 320, two_shared(16, 4, 64)).replace(vocab=257, bos_id=256, eos_ids=(256,)),
}

FAMILY = Family(
    name="dots1",
    architecture="Dots1ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN | {"moe_layer_freq": 1},
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + HEAD_NORMS + MLP + EXPERTS + SHARED,
    fused=FUSED_EXPERTS,
    presets=presets("dots1", SIZES),
)
