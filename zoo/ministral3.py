"""Ministral 3 (Mistral AI 2025): grouped-query attention with stretched rope, and late queries sharpened as in
Llama 4."""

from typing import Any

from ..layers.attention import Attention, Scores
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope, Yarn
from ..layers.temperature import Temperature
from .family import ATTENTION, EMBEDDINGS, MLP, PLAIN, PRE_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_rope

CLASS_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""The rope of configs that say nothing of it."""

ROPES = ("rope_parameters", "rope_scaling")


def read(c: Fields) -> Spec:
    plain, temperature = read_temperature(c, CLASS_ROPE, share=1.0)
    heads, head_dim = c.int("num_attention_heads", 32, least=1), c.int("head_dim", 128)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-5))
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=read_rope(plain, head_dim),
            window=c.int("sliding_window", None),
            scores=Scores(temperature=temperature),
        ),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=pre_norm(norm),
        final_norm=norm,
    )


def read_temperature(c: Fields, class_rope: dict[str, Any], share: float) -> tuple[Fields, Temperature | None]:
    """The config with a plain rope, and the temperature that its rope describes beside it.

    share: the only `partial_rotary_factor`."""
    c.taken.update(ROPES)
    spelt = {name: dict(c.nested(name).config) for name in ROPES if c.nested(name).config}
    found: list[Temperature | None] = []
    plain = {name: value for name, value in c.config.items() if name not in ROPES}
    for name, rope in (spelt or {"rope_parameters": class_rope}).items():
        p = Fields(rope, f"{name}.")
        p.only("max_position_embeddings", c.int("max_position_embeddings"))
        p.only("partial_rotary_factor", share)
        strength, rest = p.float("llama_4_scaling_beta", None), {k: v for k, v in rope.items() if k not in p.taken}
        found.append(None)
        if strength is not None:
            length = int(p.int("original_max_position_embeddings", least=1))
            found[-1] = Temperature(length=length, strength=strength)
        plain[name] = rest
    if len(set(found)) > 1:
        raise ValueError(f"config fields {' and '.join(map(repr, spelt))} describe different temperatures; keep one")
    fields = Fields(plain)
    fields.taken = c.taken
    return fields, found[0]


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention = spec.attention[0]
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "sliding_window": attention.window,
        **write_temperature(write_rope(attention.rope, dialect), attention.scores.temperature),
        "intermediate_size": spec.mlp[0].ffn,
        "rms_norm_eps": spec.final_norm.eps,
    }


def write_temperature(rope: dict[str, Any], temperature: Temperature | None) -> dict[str, Any]:
    """The fields of a rope with those of the temperature beside it, which is counted in its original length."""
    name = next(name for name in ROPES if name in rope)
    told = {} if temperature is None else {"llama_4_scaling_beta": temperature.strength}
    return rope | {name: {**(rope[name] or {"rope_type": "default"}), **told}}  # null would be read as YaRN


def size(
    width: int, ffn: int, depth: int, heads: int, kv_heads: int, head_dim: int, factor: float, original: int = 16_384
) -> Spec:
    norm = RMSNorm(eps=1e-5)
    yarn = Yarn(factor=factor, original_length=original, mscale=1.0, mscale_all_dim=1.0)
    return Spec(
        vocab=131_072,
        width=width,
        depth=depth,
        attention=Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=Rope(dim=head_dim, theta=1e6, scaling=yarn),
            scores=Scores(temperature=Temperature(length=original)),
        ),
        mlp=GatedMLP(ffn=ffn),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=int(factor * original),
        bos_id=1,
        eos_ids=(2,),
        pad_id=11,
    )


# The class defaults, which are those of the published 8B; the nano is for laptops.
SIZES = {
    "ministral3-8b": size(4096, 14336, 34, 32, 8, 128, 16.0),
    "ministral3-nano": size(192, 512, 6, 6, 2, 32, 4.0, original=512).replace(
        vocab=257, bos_id=256, eos_ids=(256,), pad_id=None
    ),
}

FAMILY = Family(
    name="ministral3",
    architecture="Ministral3ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + MLP,
    presets=presets("ministral3", SIZES),
)
