"""GLM-4-0414 (GLM team 2024, arXiv 2406.12793; weights of 2025): grouped-query attention that rotates half of each
head, sandwich norms, gate and up in one tensor."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import sandwich_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, PLAIN, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_rope
from .weights import rows


def read(c: Fields) -> Spec:
    heads, norm = c.int("num_attention_heads", least=1), RMSNorm(eps=c.float("rms_norm_eps", 1.5625e-7))
    head_dim = c.int("head_dim", 128)
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", 2),
            head_dim=head_dim,
            rope=read_rope(c, head_dim, interleaved=True, share=0.5),
            bias="qkv" if c.bool("attention_bias", True) else "",
        ),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=sandwich_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention = spec.attention[0]
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **write_rope(attention.rope, dialect, attention.head_dim),
        "attention_bias": bool(attention.bias),
        "intermediate_size": spec.mlp[0].ffn,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, dim: int, bias: str) -> Spec:
    norm, rope = RMSNorm(eps=1e-5), Rope(dim=dim // 2, interleaved=True)
    return Spec(
        vocab=151_552,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope, bias=bias),
        mlp=GatedMLP(ffn=ffn),
        block=sandwich_norm(norm),
        final_norm=norm,
        max_length=32_768,
        eos_ids=(151_329, 151_336, 151_338),
        pad_id=151_329,
    )


# Published numbers; those of the 9B are the class defaults of transformers too, but for eps and length.
SIZES = {
    "glm4-9b": size(4096, 13696, 40, 32, 2, 128, bias="qkv"),
    "glm4-32b": size(6144, 23040, 61, 48, 2, 128, bias=""),
    "glm4-nano": size(192, 512, 6, 6, 2, 32, bias="qkv").replace(
        vocab=257, max_length=4096, bos_id=256, eos_ids=(256,), pad_id=None
    ),
}

FAMILY = Family(
    name="glm4",
    architecture="Glm4ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS
    + ATTENTION
    + rows(
        ("model.layers.{l}.input_layernorm.weight", "D", "attention_before/scale_D"),
        ("model.layers.{l}.post_self_attn_layernorm.weight", "D", "attention_after/scale_D"),
        ("model.layers.{l}.post_attention_layernorm.weight", "D", "mlp_before/scale_D"),
        ("model.layers.{l}.post_mlp_layernorm.weight", "D", "mlp_after/scale_D"),
        ("model.layers.{l}.mlp.gate_up_proj.weight", "[F F] D", "mlp/w_gate_DF", "mlp/w_up_DF"),
        ("model.layers.{l}.mlp.down_proj.weight", "D F", "mlp/w_down_FD"),
    ),
    presets=presets("glm4", SIZES),
)
