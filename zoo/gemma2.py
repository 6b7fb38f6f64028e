"""Gemma 2 (Gemma team 2024, arXiv 2408.00118): windowed and global layers in turn, sandwich norms with zero-centred
scales, softcaps on scores and on logits, embeddings scaled by sqrt(width)."""

import math
from typing import Any

from ..layers.attention import Attention, Scores
from ..layers.block import sandwich_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, MLP, SANDWICH_NORMS, Family, presets, shortest
from .fields import (
    Fields,
    layer_types,
    layer_windows,
    read_activation,
    read_common,
    read_rope,
    write_activation,
    write_common,
    write_rope,
)


def read(c: Fields) -> Spec:
    head_dim, window = c.int("head_dim", 256), c.int("sliding_window", 4096)
    norm, rope = RMSNorm(eps=c.float("rms_norm_eps", 1e-6), zero_centred=True), read_rope(c, head_dim)

    def softcap(name: str, default: float) -> Any:
        return c.float(name, None if name in c.config else default)  # null is none, unsaid is the default

    def attention(seen: int | None) -> Attention:
        return Attention(
            heads=c.int("num_attention_heads", 8),
            kv_heads=c.int("num_key_value_heads", 4),
            head_dim=head_dim,
            rope=rope,
            window=seen,
            scores=Scores(
                scale=c.float("query_pre_attn_scalar", 256) ** -0.5,
                softcap=softcap("attn_logit_softcapping", 50.0),
            ),
            bias="qkvo" if c.bool("attention_bias", False) else "",
        )

    activation = read_activation(c, "hidden_activation", "gelu_pytorch_tanh")
    return Spec(
        **read_common(c, tied=True),
        attention=shortest(tuple(attention(seen) for seen in layer_windows(c, window, lambda i: i % 2 == 0))),
        mlp=GatedMLP(ffn=c.int("intermediate_size"), activation=activation),
        block=sandwich_norm(norm),
        final_norm=norm,
        embedding_scale=math.sqrt(c.int("hidden_size")),
        logit_softcap=softcap("final_logit_softcapping", 30.0),
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    layers, mlp = [layer.attention for layer in spec.layers], spec.mlp[0]
    attention = layers[0]
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **write_rope(attention.rope, dialect),
        "query_pre_attn_scalar": round(attention.scores.scale**-2),
        "attn_logit_softcapping": attention.scores.softcap,
        "final_logit_softcapping": spec.logit_softcap,
        "attention_bias": bool(attention.bias),
        "sliding_window": next((layer.window for layer in layers if layer.window), 4096),
        "layer_types": layer_types(spec),
        "intermediate_size": mlp.ffn,
        "hidden_activation": write_activation(mlp.activation),
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(
    width: int, ffn: int, depth: int, heads: int, kv_heads: int, dim: int, scalar: int, window: int = 4096
) -> Spec:
    norm = RMSNorm(eps=1e-6, zero_centred=True)
    common: dict[str, Any] = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": dim,
        "rope": Rope(dim=dim),
        "scores": Scores(scale=scalar**-0.5, softcap=50.0),
    }
    everywhere, local = Attention(**common), Attention(**common, window=window)
    return Spec(
        vocab=256_000,
        width=width,
        depth=depth,
        attention=(local, everywhere),
        mlp=GatedMLP(ffn=ffn, activation="gelu_tanh"),
        block=sandwich_norm(norm),
        final_norm=norm,
        tied=True,
        embedding_scale=math.sqrt(width),
        logit_softcap=30.0,
        max_length=8192,
        bos_id=2,
        eos_ids=(1,),
        pad_id=0,
    )


# Published numbers, those of the base models.
SIZES = {
    "gemma2-2b": size(2304, 9216, 26, 8, 4, 256, scalar=256),
    "gemma2-9b": size(3584, 14336, 42, 16, 8, 256, scalar=256),
    "gemma2-27b": size(4608, 36864, 46, 32, 16, 128, scalar=144),
    "gemma2-nano": size(192, 512, 6, 6, 2, 32, scalar=32, window=64).replace(vocab=257, bos_id=256, eos_ids=(256,)),
}

FAMILY = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    read=read,
    write=write,
    fixed={"use_bidirectional_attention": False, "attention_dropout": 0.0},
    weights=EMBEDDINGS + SANDWICH_NORMS + ATTENTION + MLP,
    inert=frozenset({"hidden_act", "sliding_window_size"}),  # published beside the fields that are read
    presets=presets("gemma2", SIZES),
)
