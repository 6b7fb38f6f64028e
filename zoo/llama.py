"""Llama 3.1 and 3.2 (Grattafiori et al.

2024, arXiv 2407.21783): grouped-query attention, pre-norm, gated MLP, stretched rope.
"""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import RMSNorm
from ..layers.rope import Llama3, Rope
from .family import ATTENTION, EMBEDDINGS, MLP, PLAIN, PRE_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_rope


def read(c: Fields) -> Spec:
    heads, width = c.int("num_attention_heads", least=1), c.int("hidden_size")
    head_dim = c.int("head_dim", width // heads)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=read_rope(c, head_dim),
            bias="qkvo" if c.bool("attention_bias", False) else "",
        ),
        mlp=GatedMLP(ffn=c.int("intermediate_size"), bias=c.bool("mlp_bias", False)),
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
        "attention_bias": bool(attention.bias),
        "intermediate_size": mlp.ffn,
        "mlp_bias": mlp.bias,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(
    width: int, ffn: int, depth: int, heads: int, kv_heads: int, head_dim: int, factor: float, tied: bool = False
) -> Spec:
    norm = RMSNorm(eps=1e-5)
    rope = Rope(dim=head_dim, theta=500_000.0, scaling=Llama3(factor=factor))
    return Spec(
        vocab=128_256,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=rope),
        mlp=GatedMLP(ffn=ffn),
        block=pre_norm(norm),
        final_norm=norm,
        tied=tied,
        max_length=131_072,
        bos_id=128_000,
        eos_ids=(128_001,),
    )


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + MLP,
    presets=presets(
        "llama",
        {
            "llama3.1-8b": size(4096, 14336, 32, 32, 8, 128, factor=8),
            "llama3.1-70b": size(8192, 28672, 80, 64, 8, 128, factor=8),
            "llama3.1-405b": size(16384, 53248, 126, 128, 8, 128, factor=8),
            "llama3.2-1b": size(2048, 8192, 16, 32, 8, 64, factor=32, tied=True),
            "llama3.2-3b": size(3072, 8192, 28, 24, 8, 128, factor=32, tied=True),
            "llama3-nano": size(192, 512, 6, 6, 2, 32, factor=8).replace(vocab=257, bos_id=256, eos_ids=(256,)),
        },
    ),
)
