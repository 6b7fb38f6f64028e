"""EXAONE 4.0 (LG AI Research 2025, arXiv 2507.11407): each layer's output is normalised before it joins the residual;
QK-norm per head; in the large model three windowed layers with rope to a global one without positions."""

from dataclasses import replace
from typing import Any

from ..layers.attention import Attention
from ..layers.block import inner_post_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Llama3, Rope
from .family import ATTENTION, EMBEDDINGS, HEAD_NORMS, MLP, PLAIN, POST_NORMS, Family, presets, shortest
from .fields import Fields, layer_types, layer_windows, read_common, read_rope, write_common, write_rope


def read(c: Fields) -> Spec:
    heads = c.int("num_attention_heads", least=1)
    head_dim, kv_heads = c.int("head_dim", c.int("hidden_size") // heads), c.int("num_key_value_heads", heads)
    norm, rope = RMSNorm(eps=c.float("rms_norm_eps", 1e-5)), read_rope(c, head_dim)
    # A config that says null has no windows, and rope everywhere; one that says nothing has them.
    window = c.int("sliding_window", None if "sliding_window" in c.config else 4096)
    known = window is None or c.get("layer_types", None) is not None  # then the pattern says nothing
    every = 1 if known else c.int("sliding_window_pattern", 4, least=1)
    c.taken.add("sliding_window_pattern")

    def attention(seen: int | None) -> Attention:
        return Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=rope if window is None or seen else None,
            window=seen,
            qk_norm=QKNorm(norm=norm),
        )

    windows = layer_windows(c, window, lambda i: (i + 1) % every != 0)
    return Spec(
        **read_common(c),
        attention=shortest(tuple(attention(seen) for seen in windows)),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=inner_post_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    layers = [layer.attention for layer in spec.layers]
    windowed = [attention for attention in layers if attention.window]
    hybrid = any(attention.rope is None for attention in layers)
    rope = next((attention.rope for attention in layers if attention.rope), Rope(dim=layers[0].head_dim))
    return write_common(spec) | {
        "num_attention_heads": layers[0].heads,
        "num_key_value_heads": layers[0].kv_heads,
        "head_dim": layers[0].head_dim,
        **write_rope(rope, dialect),
        "sliding_window": windowed[0].window if windowed else 4096 if hybrid else None,
        "layer_types": layer_types(spec),
        "intermediate_size": spec.mlp[0].ffn,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(
    width: int, ffn: int, depth: int, heads: int, kv_heads: int, head_dim: int, window: int | None, length: int
) -> Spec:
    norm = RMSNorm(eps=1e-5)
    plain = Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, qk_norm=QKNorm(norm=norm))
    turned = replace(plain, rope=Rope(dim=head_dim, theta=1e6, scaling=Llama3(factor=16.0)), window=window)
    return Spec(
        vocab=102_400,
        width=width,
        depth=depth,
        attention=turned if window is None else (turned,) * 3 + (plain,),
        mlp=GatedMLP(ffn=ffn),
        block=inner_post_norm(norm),
        final_norm=norm,
        tied=window is None,
        max_length=length,
        bos_id=1,
        eos_ids=(361,),
        pad_id=0,
    )


# Published numbers, all of them.
SIZES = {
    "exaone4-1.2b": size(2048, 4096, 30, 32, 8, 64, window=None, length=65_536),
    "exaone4-32b": size(5120, 27392, 64, 40, 8, 128, window=4096, length=131_072),
    "exaone4-nano": size(192, 512, 8, 6, 2, 32, window=64, length=4096).replace(
        vocab=257, bos_id=256, eos_ids=(256,), pad_id=None
    ),
}

FAMILY = Family(
    name="exaone4",
    architecture="Exaone4ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + ATTENTION + HEAD_NORMS + MLP + POST_NORMS,
    presets=presets("exaone4", SIZES),
)
