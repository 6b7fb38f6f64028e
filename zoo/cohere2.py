"""Command R7B and Command A (Cohere 2024; Command A: Cohere team 2025, arXiv 2504.00698): attention and MLP in parallel
behind one LayerNorm without bias; three windowed layers with rope to a global one without positions; scaled logits.
"""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import Parallel
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import LayerNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, MLP, PLAIN, Family, presets, shortest
from .fields import Fields, layer_types, layer_windows, read_common, read_rope, write_common, write_rope
from .weights import rows

FIXED = PLAIN | {
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": False,
    "use_qk_norm": False,
}
"""What published configs say and transformers takes for granted."""


def read(c: Fields) -> Spec:
    heads, every = c.int("num_attention_heads", least=1), c.int("sliding_window_pattern", 4, least=1)
    head_dim, kv_heads = c.int("hidden_size") // heads, c.int("num_key_value_heads", heads)
    c.only("head_dim", head_dim)
    norm = LayerNorm(eps=c.float("layer_norm_eps", 1e-5), bias=False)
    rope = read_rope(c, head_dim, interleaved=True)
    bias = "qkvo" if c.bool("attention_bias", False) else ""

    def attention(window: int | None) -> Attention:
        positions = None if window is None else rope
        return Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=positions, window=window, bias=bias)

    windows = layer_windows(c, c.int("sliding_window", 4096), lambda i: (i + 1) % every != 0)
    return Spec(
        **read_common(c, tied=True),
        attention=shortest(tuple(attention(window) for window in windows)),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=Parallel(before=norm),
        final_norm=norm,
        logit_scale=c.float("logit_scale", 0.0625),
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    layers = [layer.attention for layer in spec.layers]
    local = next((attention for attention in layers if attention.window), None)
    rope, window = (local.rope, local.window) if local else (Rope(dim=layers[0].head_dim), 4096)
    return write_common(spec) | {
        "num_attention_heads": layers[0].heads,
        "num_key_value_heads": layers[0].kv_heads,
        **write_rope(rope, dialect),
        "sliding_window": window,
        "layer_types": layer_types(spec),
        "attention_bias": bool(layers[0].bias),
        "intermediate_size": spec.mlp[0].ffn,
        "layer_norm_eps": spec.final_norm.eps,
        "logit_scale": spec.logit_scale,
    }


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, window: int) -> Spec:
    norm, dim = LayerNorm(eps=1e-5, bias=False), width // heads
    everywhere = Attention(heads=heads, kv_heads=kv_heads, head_dim=dim)
    rope = Rope(dim=dim, theta=50_000.0, interleaved=True)
    local = Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope, window=window)
    return Spec(
        vocab=256_000,
        width=width,
        depth=depth,
        attention=(local,) * 3 + (everywhere,),
        mlp=GatedMLP(ffn=ffn),
        block=Parallel(before=norm),
        final_norm=norm,
        tied=True,
        logit_scale=0.25,
        max_length=132_096,
        bos_id=5,
        eos_ids=(255_001,),
        pad_id=0,
    )


# Published numbers, all of them.
SIZES = {
    "command-r7b": size(4096, 14336, 32, 32, 8, window=4096),
    "cohere2-nano": size(192, 512, 8, 6, 2, window=64).replace(
        vocab=257, max_length=4096, bos_id=256, eos_ids=(256,), pad_id=None
    ),
}

FAMILY = Family(
    name="cohere2",
    architecture="Cohere2ForCausalLM",
    read=read,
    write=write,
    fixed=FIXED,
    weights=EMBEDDINGS + ATTENTION + MLP + rows(("model.layers.{l}.input_layernorm.weight", "D", "before/scale_D")),
    presets=presets("cohere2", SIZES),
)
