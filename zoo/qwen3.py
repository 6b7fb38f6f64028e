"""Qwen3 (Qwen team 2025, arXiv 2505.09388): grouped-query attention with QK-norm per head."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, HEAD_NORMS, MLP, PLAIN, PRE_NORMS, Family, presets, shortest
from .fields import Fields, layer_types, layer_windows, read_common, read_rope, write_common, write_rope


def read_attention(c: Fields, norm: RMSNorm, window: int | None) -> Attention:
    heads = c.int("num_attention_heads", least=1)
    head_dim = c.int("head_dim", 128 if c.config.get("model_type") == "qwen3" else c.int("hidden_size") // heads)
    return Attention(
        heads=heads,
        kv_heads=c.int("num_key_value_heads"),
        head_dim=head_dim,
        rope=read_rope(c, head_dim),
        window=window,
        qk_norm=QKNorm(norm=norm),
        bias="qkvo" if c.bool("attention_bias", False) else "",
    )


def write_attention(spec: Spec, dialect: int) -> dict[str, Any]:
    attention = spec.layers[-1].attention
    return {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **write_rope(attention.rope, dialect),
        "attention_bias": bool(attention.bias),
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "rms_norm_eps": spec.final_norm.eps,
    }


def read(c: Fields) -> Spec:
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    return Spec(
        **read_common(c),
        attention=shortest(tuple(read_attention(c, norm, window) for window in read_windows(c))),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=pre_norm(norm),
        final_norm=norm,
    )


def read_windows(c: Fields) -> list[int | None]:
    """The window of each layer, None for a layer that sees all."""
    first = c.int("max_window_layers", 28)
    window = c.int("sliding_window", 4096) if c.bool("use_sliding_window", False) else None
    c.taken.add("sliding_window")
    return layer_windows(c, window, lambda i: window is not None and i >= first)


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    return (
        write_common(spec)
        | write_attention(spec, dialect)
        | write_windows(spec)
        | {"intermediate_size": spec.mlp[0].ffn}
    )


def write_windows(spec: Spec) -> dict[str, Any]:
    windows = [layer.attention.window for layer in spec.layers]
    window = next((w for w in windows if w), None)
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": next((i for i, w in enumerate(windows) if w), spec.depth),
        **({} if window is None else {"layer_types": layer_types(spec)}),
    }


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, head_dim: int = 128, tied: bool = False) -> Spec:
    norm = RMSNorm(eps=1e-6)
    return Spec(
        vocab=151_936,
        width=width,
        depth=depth,
        attention=Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=Rope(dim=head_dim, theta=1e6),
            qk_norm=QKNorm(norm=norm),
        ),
        mlp=GatedMLP(ffn=ffn),
        block=pre_norm(norm),
        final_norm=norm,
        tied=tied,
        max_length=40_960,
        bos_id=151_643,
        eos_ids=(151_645,),
    )


FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + HEAD_NORMS + MLP,
    presets=presets(
        "qwen3",
        {
            "qwen3-0.6b": size(1024, 3072, 28, 16, 8, tied=True),
            "qwen3-1.7b": size(2048, 6144, 28, 16, 8, tied=True),
            "qwen3-4b": size(2560, 9728, 36, 32, 8, tied=True),
            "qwen3-8b": size(4096, 12288, 36, 32, 8),
            "qwen3-14b": size(5120, 17408, 40, 40, 8),
            "qwen3-32b": size(5120, 25600, 64, 64, 8),
            "qwen3-nano": size(192, 512, 6, 6, 2, 32).replace(vocab=257, bos_id=256, eos_ids=(256,)),
        },
    ),
)
