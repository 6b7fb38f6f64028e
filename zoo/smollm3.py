"""SmolLM3 (Hugging Face 2025): Llama with no position information in every fourth layer (RNoPE: Yang et al. 2025, arXiv
2501.18795).
"""

from dataclasses import replace
from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, MLP, PLAIN, PRE_NORMS, Family, presets, shortest
from .fields import Fields, layer_types, layer_windows, read_common, read_rope, write_common, write_rope


def read(c: Fields) -> Spec:
    c = c.over({"rope_theta": 2e6})
    heads, depth = c.int("num_attention_heads", 16, least=1), c.int("num_hidden_layers")
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    norm, every = RMSNorm(eps=c.float("rms_norm_eps", 1e-6)), c.int("no_rope_layer_interval", 4, least=1)
    turned = c.list("no_rope_layers", [int((i + 1) % every != 0) for i in range(depth)])  # 1 where there is rope
    if len(turned) < depth or any(item not in (0, 1) for item in turned):
        raise ValueError(f"config field 'no_rope_layers' must be 0 or 1 for each of {depth} layers, not {turned!r:.80}")
    window = c.int("sliding_window", None) if c.bool("use_sliding_window", False) else None
    c.taken.add("sliding_window")
    windows = layer_windows(c, window, lambda i: window is not None and not turned[i])
    attention = Attention(
        heads=heads,
        kv_heads=c.int("num_key_value_heads", 4),
        head_dim=head_dim,
        rope=read_rope(c, head_dim),
        bias="qkvo" if c.bool("attention_bias", False) else "",
    )
    layers = tuple(
        replace(attention, rope=attention.rope if has_rope else None, window=window)
        for has_rope, window in zip(turned, windows, strict=False)
    )
    return Spec(
        **read_common(c, tied=True),
        attention=shortest(layers),
        mlp=GatedMLP(ffn=c.int("intermediate_size", 11008), bias=c.bool("mlp_bias", False)),
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    mlp, layers = spec.mlp[0], [layer.attention for layer in spec.layers]
    windows = [attention.window for attention in layers if attention.window]
    rope = next((attention.rope for attention in layers if attention.rope), Rope(dim=layers[0].head_dim, theta=2e6))
    fields = write_common(spec) | {
        "num_attention_heads": layers[0].heads,
        "num_key_value_heads": layers[0].kv_heads,
        **write_rope(rope, dialect),
        "no_rope_layers": [int(attention.rope is not None) for attention in layers],
        "no_rope_layer_interval": 4,
        "use_sliding_window": bool(windows),
        "sliding_window": windows[0] if windows else None,
        "layer_types": layer_types(spec),
        "attention_bias": bool(layers[0].bias),
        "intermediate_size": mlp.ffn,
        "mlp_bias": mlp.bias,
        "rms_norm_eps": spec.final_norm.eps,
    }
    derived = layers[0].head_dim == spec.width // layers[0].heads
    return fields if derived else fields | {"head_dim": layers[0].head_dim}


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int) -> Spec:
    norm, dim = RMSNorm(eps=1e-6), width // heads
    turned = Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=Rope(dim=dim, theta=5e6))
    return Spec(
        vocab=128_256,
        width=width,
        depth=depth,
        attention=(turned,) * 3 + (replace(turned, rope=None),),
        mlp=GatedMLP(ffn=ffn),
        block=pre_norm(norm),
        final_norm=norm,
        tied=True,
        max_length=65_536,
        bos_id=128_000,
        eos_ids=(128_001,),
        pad_id=128_004,
    )


# Sizes, context and rope theta as published; the token ids are the defaults of the class.
SIZES = {
    "smollm3-3b": size(2048, 11008, 36, 16, 4),
    "smollm3-nano": size(192, 512, 8, 6, 2).replace(
        vocab=257, max_length=4096, bos_id=256, eos_ids=(256,), pad_id=None
    ),
}

FAMILY = Family(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + MLP,
    inert=frozenset({"max_window_layers"}),  # published beside layer_types, and read by nobody
    presets=presets("smollm3", SIZES),
)
