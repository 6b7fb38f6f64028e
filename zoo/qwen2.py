"""Qwen2 and Qwen2.5 (Qwen team 2024, arXiv 2407.10671 and 2412.15115): grouped-query attention with a bias on queries,
keys and values.
"""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, MLP, PLAIN, PRE_NORMS, Family, presets, shortest
from .fields import Fields, read_common, read_rope, write_common, write_heads, write_rope
from .qwen3 import read_windows, write_windows


def read(c: Fields) -> Spec:
    heads = c.int("num_attention_heads", least=1)
    head_dim, kv_heads = c.int("head_dim", c.int("hidden_size") // heads), c.int("num_key_value_heads", heads)
    norm, rope = RMSNorm(eps=c.float("rms_norm_eps", 1e-6)), read_rope(c, head_dim)

    def attention(window: int | None) -> Attention:
        return Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=rope, window=window, bias="qkv")

    return Spec(
        **read_common(c),
        attention=shortest(tuple(attention(window) for window in read_windows(c))),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention = spec.layers[0].attention
    return write_common(spec) | {
        **write_heads(spec),
        **write_rope(attention.rope, dialect),
        **write_windows(spec),
        "intermediate_size": spec.mlp[0].ffn,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, vocab: int = 152_064, tied: bool = False) -> Spec:
    norm, dim = RMSNorm(eps=1e-6), width // heads
    return Spec(
        vocab=vocab,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=Rope(dim=dim, theta=1e6), bias="qkv"),
        mlp=GatedMLP(ffn=ffn),
        block=pre_norm(norm),
        final_norm=norm,
        tied=tied,
        max_length=32_768,
        bos_id=151_643,
        eos_ids=(151_645,),
    )


# Published numbers, those of the instruct models.
SIZES = {
    "qwen2.5-0.5b": size(896, 4864, 24, 14, 2, vocab=151_936, tied=True),
    "qwen2.5-1.5b": size(1536, 8960, 28, 12, 2, vocab=151_936, tied=True),
    "qwen2.5-3b": size(2048, 11008, 36, 16, 2, vocab=151_936, tied=True),
    "qwen2.5-7b": size(3584, 18944, 28, 28, 4),
    "qwen2.5-14b": size(5120, 13824, 48, 40, 8),
    "qwen2.5-32b": size(5120, 27648, 64, 40, 8),
    "qwen2.5-72b": size(8192, 29568, 80, 64, 8),
    "qwen2.5-nano": size(192, 512, 6, 6, 2).replace(vocab=257, bos_id=256, eos_ids=(256,)),
}

FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + MLP,
    presets=presets("qwen2", SIZES),
)
