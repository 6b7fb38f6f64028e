"""OLMo 2 (OLMo team 2025, arXiv 2501.00656): each layer's output is normalised before it joins the residual; QK-
norm over the full width.
"""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import inner_post_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, MLP, PLAIN, WIDTH_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_heads, write_rope
from .weights import rows


def read(c: Fields) -> Spec:
    heads = c.int("num_attention_heads", least=1)
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-5))
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=read_rope(c, head_dim),
            qk_norm=QKNorm(norm=norm, over="width"),
            bias="qkvo" if c.bool("attention_bias", False) else "",
        ),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=inner_post_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, mlp = spec.attention[0], spec.mlp[0]
    return write_common(spec) | {
        **write_heads(spec),
        **write_rope(attention.rope, dialect),
        "attention_bias": bool(attention.bias),
        "intermediate_size": mlp.ffn,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int) -> Spec:
    norm = RMSNorm(eps=1e-6)
    head_dim = width // heads
    return Spec(
        vocab=100_352,
        width=width,
        depth=depth,
        attention=Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=Rope(dim=head_dim, theta=500_000.0),
            qk_norm=QKNorm(norm=norm, over="width"),
        ),
        mlp=GatedMLP(ffn=ffn),
        block=inner_post_norm(norm),
        final_norm=norm,
        eos_ids=(100_257,),
        pad_id=100_277,
    )


FAMILY = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS
    + ATTENTION
    + WIDTH_NORMS
    + MLP
    + rows(
        ("model.layers.{l}.post_attention_layernorm.weight", "D", "attention_after/scale_D"),
        ("model.layers.{l}.post_feedforward_layernorm.weight", "D", "mlp_after/scale_D"),
    ),
    presets=presets(
        "olmo2",
        {
            "olmo2-1b": size(2048, 8192, 16, 16, 16),
            "olmo2-7b": size(4096, 11008, 32, 32, 32),
            "olmo2-13b": size(5120, 13824, 40, 40, 40),
            "olmo2-32b": size(5120, 27648, 64, 40, 8),
            "olmo2-nano": size(192, 512, 6, 6, 6).replace(vocab=257, eos_ids=(256,), pad_id=None),
        },
    ),
)
