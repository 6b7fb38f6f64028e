"""Apertus (Swiss AI 2025, arXiv 2509.14233): grouped-query attention with QK-norm per head, an MLP without a gate whose
activation, xIELU, learns its shape in every layer."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.norms import QKNorm, RMSNorm
from ..layers.plain import MLP, XIELU
from ..layers.rope import Llama3, Rope
from .family import ATTENTION, EMBEDDINGS, HEAD_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_rope
from .weights import rows

ROPES = ("rope_parameters", "rope_scaling")
FIXED = {"hidden_act": XIELU, "attention_dropout": 0.0, "mlp_bias": False, "qk_norm": True, "post_norm": False}


def read(c: Fields) -> Spec:
    if not any(c.config.get(name) for name in ROPES):
        raise ValueError(f"an apertus config must say its rope in one of {ROPES}: what none means has changed")
    heads, norm = c.int("num_attention_heads", least=1), RMSNorm(eps=c.float("rms_norm_eps", 1e-5))
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=read_rope(c.over({"rope_theta": 12e6}), head_dim),
            qk_norm=QKNorm(norm=norm),
            bias="qkvo" if c.bool("attention_bias", False) else "",
        ),
        mlp=MLP(ffn=c.int("intermediate_size")),
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, mlp = spec.attention[0], spec.mlp[0]
    rope = write_rope(attention.rope, dialect)
    if dialect < 5 and rope["rope_scaling"] is None:
        rope["rope_scaling"] = {"rope_type": "default"}
    fields = write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        **rope,
        "attention_bias": bool(attention.bias),
        "intermediate_size": mlp.ffn,
        "rms_norm_eps": spec.final_norm.eps,
    }
    derived = attention.head_dim == spec.width // attention.heads
    return fields if derived else fields | {"head_dim": attention.head_dim}


OWN_NAMES = rows(
    ("model.layers.{l}.attention_layernorm.weight", "D", "attention_before/scale_D"),
    ("model.layers.{l}.feedforward_layernorm.weight", "D", "mlp_before/scale_D"),
    ("model.layers.{l}.mlp.up_proj.weight", "F D", "mlp/w_up_DF"),
    ("model.layers.{l}.mlp.down_proj.weight", "D F", "mlp/w_down_FD"),
    ("model.layers.{l}.mlp.act_fn.alpha_p", "()", "mlp/rise_"),
    ("model.layers.{l}.mlp.act_fn.alpha_n", "()", "mlp/fall_"),
    ("model.layers.{l}.mlp.act_fn.beta", "", "mlp/slope_"),
    ("model.layers.{l}.mlp.act_fn.eps", "", "mlp/edge_"),
)


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int) -> Spec:
    norm, dim = RMSNorm(eps=1e-5), width // heads
    rope = Rope(dim=dim, theta=12e6, scaling=Llama3(factor=8.0))
    return Spec(
        vocab=131_072,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope, qk_norm=QKNorm(norm=norm)),
        mlp=MLP(ffn=ffn),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=65_536,
        bos_id=1,
        eos_ids=(2,),
        pad_id=3,
    )


# Published sizes; vocabulary, length, rope and token ids are the class defaults of transformers.
SIZES = {
    "apertus-8b": size(4096, 21504, 32, 32, 8),
    "apertus-70b": size(8192, 43008, 80, 64, 8),
    "apertus-nano": size(192, 768, 6, 6, 2).replace(vocab=257, bos_id=256, eos_ids=(256,), pad_id=None),
}

FAMILY = Family(
    name="apertus",
    architecture="ApertusForCausalLM",
    read=read,
    write=write,
    fixed=FIXED,
    weights=EMBEDDINGS + ATTENTION + HEAD_NORMS + OWN_NAMES,
    presets=presets("apertus", SIZES),
)
