"""OLMo 3 (OLMo team 2025, arXiv 2512.13961): OLMo 2 with three windowed layers to a global one, whose rope alone is
stretched."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import inner_post_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Rope, Yarn
from .family import ATTENTION, EMBEDDINGS, MLP, PLAIN, POST_NORMS, WIDTH_NORMS, Family, presets, shortest
from .fields import (
    GLOBAL,
    LOCAL,
    Fields,
    layer_types,
    layer_windows,
    read_common,
    read_ropes,
    rope_parameters,
    write_common,
    write_heads,
    write_rope,
)

THETA = 500_000.0


def read(c: Fields) -> Spec:
    heads, norm = c.int("num_attention_heads", least=1), RMSNorm(eps=c.float("rms_norm_eps", 1e-5))
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    window = c.int("sliding_window", None if "sliding_window" in c.config else 4096)
    ropes = read_ropes(c, head_dim, {GLOBAL: ("rope_theta", THETA), LOCAL: ("rope_theta", THETA)})

    def attention(seen: int | None) -> Attention:
        return Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=ropes[LOCAL if seen else GLOBAL],
            window=seen,
            qk_norm=QKNorm(norm=norm, over="width"),
            bias="qkvo" if c.bool("attention_bias", False) else "",
        )

    windows = layer_windows(c, window, lambda i: (i + 1) % 4 != 0)
    return Spec(
        **read_common(c),
        attention=shortest(tuple(attention(seen) for seen in windows)),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=inner_post_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    layers = [layer.attention for layer in spec.layers]
    attention = layers[0]
    ropes = {LOCAL if layer.window else GLOBAL: layer.rope for layer in layers}
    rope = {"rope_parameters": {kind: rope_parameters(each) for kind, each in ropes.items()}}
    return write_common(spec) | {
        **write_heads(spec),
        **(rope if dialect >= 5 else write_rope(ropes.get(GLOBAL, attention.rope), dialect)),
        "sliding_window": next((layer.window for layer in layers if layer.window), 4096),
        "layer_types": layer_types(spec),
        "attention_bias": bool(attention.bias),
        "intermediate_size": spec.mlp[0].ffn,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, window: int = 4096) -> Spec:
    norm, dim = RMSNorm(eps=1e-6), width // heads
    yarn = Yarn(factor=8.0, original_length=8192, attention_factor=1.2079441541679836)
    common: dict[str, Any] = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": dim,
        "qk_norm": QKNorm(norm=norm, over="width"),
    }
    local = Attention(**common, rope=Rope(dim=dim, theta=THETA), window=window)
    everywhere = Attention(**common, rope=Rope(dim=dim, theta=THETA, scaling=yarn))
    return Spec(
        vocab=100_278,
        width=width,
        depth=depth,
        attention=(local,) * 3 + (everywhere,),
        mlp=GatedMLP(ffn=ffn),
        block=inner_post_norm(norm),
        final_norm=norm,
        max_length=65_536,
        eos_ids=(100_257,),
        pad_id=100_277,
    )


# Published numbers, all of them.
SIZES = {
    "olmo3-7b": size(4096, 11008, 32, 32, 32),
    "olmo3-32b": size(5120, 27648, 64, 40, 8),
    "olmo3-nano": size(192, 512, 8, 6, 6, window=64).replace(vocab=257, bos_id=256, eos_ids=(256,), pad_id=None),
}

FAMILY = Family(
    name="olmo3",
    architecture="Olmo3ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + ATTENTION + WIDTH_NORMS + MLP + POST_NORMS,
    presets=presets("olmo3", SIZES),
)
