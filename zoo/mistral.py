"""Mistral 7B (Jiang et al. 2023, arXiv 2310.06825): grouped-query attention, in v0.1 through a window on every layer;
Mistral Small 3 is this with other numbers."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, MLP, PLAIN, PRE_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_rope


def read(c: Fields) -> Spec:
    heads = c.int("num_attention_heads", least=1)
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", 8),
            head_dim=head_dim,
            rope=read_rope(c, head_dim),
            # A config that says null has no window; one that says nothing has that of v0.1.
            window=c.int("sliding_window", None if "sliding_window" in c.config else 4096),
        ),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention = spec.attention[0]
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "sliding_window": attention.window,
        **write_rope(attention.rope, dialect),
        "intermediate_size": spec.mlp[0].ffn,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(
    width: int,
    ffn: int,
    depth: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    theta: float = 1e6,
    window: int | None = None,
) -> Spec:
    norm = RMSNorm(eps=1e-5)
    rope = Rope(dim=head_dim, theta=theta)
    return Spec(
        vocab=32_000,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=rope, window=window),
        mlp=GatedMLP(ffn=ffn),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=32_768,
        bos_id=1,
        eos_ids=(2,),
    )


# Published numbers, all of them.
SIZES = {
    "mistral-7b-v0.1": size(4096, 14336, 32, 32, 8, 128, theta=1e4, window=4096),
    "mistral-7b-v0.2": size(4096, 14336, 32, 32, 8, 128),
    "mistral-7b-v0.3": size(4096, 14336, 32, 32, 8, 128).replace(vocab=32_768),
    "mistral-small3-24b": size(5120, 32768, 40, 32, 8, 128, theta=1e8).replace(vocab=131_072),
    "mistral-nano": size(192, 512, 6, 6, 2, 32, theta=1e4, window=64).replace(vocab=257, bos_id=256, eos_ids=(256,)),
}

FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + MLP,
    presets=presets("mistral", SIZES),
)
