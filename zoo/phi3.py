"""Phi-3 (Abdin et al. 2024, arXiv 2404.14219) and Phi-4 (2024, arXiv 2412.08905): the Llama of its day, with queries,
keys and values in one tensor, and gate and up in another. The sizes for long texts stretch their ropes by LongRoPE.
"""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import RMSNorm
from ..layers.rope import LongRope, Rope
from .family import EMBEDDINGS, PRE_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_rope
from .weights import rows


def read(c: Fields) -> Spec:
    heads = c.int("num_attention_heads", least=1)
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    for dropout in ("attention_dropout", "resid_pdrop", "embd_pdrop"):
        c.only(dropout, 0.0)
    rope = read_rope(with_original_length(c), head_dim, share=1.0)
    if not isinstance(rope.scaling, LongRope | None):
        raise ValueError(f"a phi3 stretches its rope by longrope only, not by {rope.scaling}")
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-5))
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=rope,
            window=c.int("sliding_window", None),
        ),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=pre_norm(norm),
        final_norm=norm,
    )


def with_original_length(c: Fields) -> Fields:
    """The config with the length that longrope starts from inside its rope, where that has a scaling; "su" is what the
    first configs call longrope.
    """
    original, told = c.int("original_max_position_embeddings", 4096), dict(c.config)
    for name in ("rope_scaling", "rope_parameters"):
        rope = dict(c.nested(name).config)
        kind = rope.get("rope_type", rope.get("type"))
        if kind in ("su", "longrope"):
            c.nested(name).only("original_max_position_embeddings", original)
            rope.pop("type", None)
            told[name] = rope | {"rope_type": "longrope", "original_max_position_embeddings": original}
    fields = Fields(told)
    fields.taken = c.taken
    return fields


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention = spec.attention[0]
    scaling = attention.rope.scaling
    fields = write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "sliding_window": attention.window,
        "original_max_position_embeddings": scaling.original_length if scaling else spec.max_length,
        **write_rope(attention.rope, dialect, attention.head_dim),
        "attention_dropout": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "intermediate_size": spec.mlp[0].ffn,
        "rms_norm_eps": spec.final_norm.eps,
    }
    derived = attention.head_dim == spec.width // attention.heads
    return fields if derived else fields | {"head_dim": attention.head_dim}


def size(
    width: int, ffn: int, depth: int, heads: int, kv_heads: int, theta: float = 1e4, window: int | None = 2047
) -> Spec:
    norm, dim = RMSNorm(eps=1e-5), width // heads
    rope = Rope(dim=dim, theta=theta)
    return Spec(
        vocab=32_064,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope, window=window),
        mlp=GatedMLP(ffn=ffn),
        block=pre_norm(norm),
        final_norm=norm,
        bos_id=1,
        eos_ids=(32_000,),
        pad_id=32_000,
    )


# Published numbers, all of them.
PHI4 = {"vocab": 100_352, "max_length": 16_384, "bos_id": 100_257, "eos_ids": (100_257,), "pad_id": 100_257}
NANO = {"vocab": 257, "bos_id": 256, "eos_ids": (256,), "pad_id": None}
SIZES = {
    "phi3-mini-4k": size(3072, 8192, 32, 32, 32),
    "phi3-medium-4k": size(5120, 17920, 40, 40, 10),
    "phi4-14b": size(5120, 17920, 40, 40, 10, theta=250_000.0, window=None).replace(PHI4),
    "phi3-nano": size(192, 512, 6, 6, 2, window=None).replace(NANO),
}

FAMILY = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    read=read,
    write=write,
    fixed={"hidden_act": "silu"},
    weights=EMBEDDINGS
    + PRE_NORMS
    + rows(
        (
            "model.layers.{l}.self_attn.qkv_proj.weight",
            "[(K G E) (K E) (K E)] D",
            "attention/wq_DKGE",
            "attention/wk_DKE",
            "attention/wv_DKE",
        ),
        ("model.layers.{l}.self_attn.o_proj.weight", "D (K G E)", "attention/wo_KGED"),
        ("model.layers.{l}.mlp.gate_up_proj.weight", "[F F] D", "mlp/w_gate_DF", "mlp/w_up_DF"),
        ("model.layers.{l}.mlp.down_proj.weight", "D F", "mlp/w_down_FD"),
    ),
    presets=presets("phi3", SIZES),
)
