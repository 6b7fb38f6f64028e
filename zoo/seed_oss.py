"""Seed-OSS (ByteDance Seed 2025): grouped-query attention with a bias on queries, keys and values, its heads together
twice as wide as the residual.
"""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, MLP, PRE_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_rope


def read(c: Fields) -> Spec:
    heads, head_dim = c.int("num_attention_heads", 80, least=1), c.int("head_dim", 128)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    bias = ("qkv" if c.bool("attention_bias", True) else "") + ("o" if c.bool("attention_out_bias", False) else "")
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", 8),
            head_dim=head_dim,
            rope=read_rope(c, head_dim),
            bias=bias,
        ),
        mlp=GatedMLP(ffn=c.int("intermediate_size", 27648), bias=c.bool("mlp_bias", False)),
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, mlp = spec.attention[0], spec.mlp[0]
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **write_rope(attention.rope, dialect),
        "attention_bias": "q" in attention.bias,
        "attention_out_bias": "o" in attention.bias,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "intermediate_size": mlp.ffn,
        "mlp_bias": mlp.bias,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, head_dim: int) -> Spec:
    norm = RMSNorm(eps=1e-6)
    rope = Rope(dim=head_dim, theta=1e7)
    return Spec(
        vocab=155_136,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=rope, bias="qkv"),
        mlp=GatedMLP(ffn=ffn),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=524_288,
        bos_id=0,
        eos_ids=(2,),
        pad_id=1,
    )


# Width and rope theta as published; the rest is both published and the defaults of the class.
SIZES = {
    "seed-oss-36b": size(5120, 27648, 64, 80, 8, 128),
    "seed-oss-nano": size(128, 384, 6, 8, 2, 32).replace(
        vocab=257, max_length=4096, bos_id=256, eos_ids=(256,), pad_id=None
    ),
}

FAMILY = Family(
    name="seed_oss",
    architecture="SeedOssForCausalLM",
    read=read,
    write=write,
    fixed={"hidden_act": "silu"},
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + MLP,
    inert=frozenset({"attention_dropout", "residual_dropout"}),  # published as 0.1: of training, not of the model
    presets=presets("seed_oss", SIZES),
)
