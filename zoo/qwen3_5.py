"""Qwen3.5 (Qwen team 2026), the language model: Qwen3-Next's layers with dense MLPs, or with experts."""

from collections.abc import Mapping
from typing import Any

from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from .family import EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS, Family, Wrapper, presets
from .fields import Fields
from .hybrid import DELTA, GATED, SHARED
from .qwen3_next import (
    DELTA_32,
    LETTERS,
    NANO,
    experts,
    read_experts,
    read_mixers,
    size,
    write_experts,
    write_mixers,
)
from .weights import rows


def of_text(c: Fields) -> Fields:
    """The config without the shares of rope that time, height and width have: of text, all three are the position."""
    kept = dict(c.config)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(kept.get(name), Mapping):
            kept[name] = {k: v for k, v in kept[name].items() if k not in ("mrope_interleaved", "mrope_section")}
    fields = Fields(kept)
    fields.taken = c.taken
    return fields


def read(c: Fields) -> Spec:
    defaults = {"num_key_value_heads": 4, "intermediate_size": 12_288}
    c = of_text(c).over(defaults)
    return read_mixers(c, (GatedMLP(ffn=c.int("intermediate_size")),))


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    return write_mixers(spec, dialect) | {"intermediate_size": spec.mlp[0].ffn}


def read_moe(c: Fields) -> Spec:
    c = of_text(c).over({"num_experts": 256, "num_experts_per_tok": 8})
    return read_mixers(c, (read_experts(c, renormalise=True),))


def write_moe(spec: Spec, dialect: int) -> dict[str, Any]:
    return write_mixers(spec, dialect) | write_experts(spec.mlp[0])


PROJECTIONS = rows(
    (
        "model.layers.{l}.linear_attn.in_proj_qkv.weight",
        "[(K E) (K E) (K G U)] D",
        "attention/w_q_DKE",
        "attention/w_k_DKE",
        "attention/w_v_DKGU",
    ),
    ("model.layers.{l}.linear_attn.in_proj_z.weight", "(K G U) D", "attention/w_gate_DKGU"),
    ("model.layers.{l}.linear_attn.in_proj_b.weight", "(K G) D", "attention/w_rate_DKG"),
    ("model.layers.{l}.linear_attn.in_proj_a.weight", "(K G) D", "attention/w_step_DKG"),
)


def wrapper(model_type: str) -> Wrapper:
    return Wrapper(
        model_type=model_type,
        prefixes={"model.language_model.": "model."},
        left_out=("model.visual.", "mtp."),
    )


# Class defaults of transformers, which names these sizes; theta, positions and ids of tokens are Qwen3-Next's.
SIZES = {"heads": 16, "head_dim": 256, "delta": DELTA_32}
DENSE_9B = size(GatedMLP(ffn=12_288), width=4096, depth=32, kv_heads=4, **SIZES)  # type: ignore[arg-type]
MOE_35B = size(experts(256, 8, 512), width=2048, depth=40, kv_heads=2, **SIZES)  # type: ignore[arg-type]
TOKENS = {"vocab": 248_320, "bos_id": None, "eos_ids": ()}

DENSE = Family(
    name="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    read=read,
    write=write,
    weights=EMBEDDINGS + PRE_NORMS + GATED + DELTA + PROJECTIONS + MLP,
    wrapper=wrapper("qwen3_5"),
    presets=presets(
        "qwen3_5_text",
        {
            "qwen3.5-9b": DENSE_9B.replace(TOKENS),
            "qwen3.5-nano": size(GatedMLP(ffn=320), **NANO).replace(LETTERS),  # type: ignore[arg-type]
        },
    ),
)

MOE = Family(
    name="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    read=read_moe,
    write=write_moe,
    weights=EMBEDDINGS + PRE_NORMS + GATED + DELTA + PROJECTIONS + EXPERTS + SHARED,
    fused=FUSED_EXPERTS,
    wrapper=wrapper("qwen3_5_moe"),
    presets=presets(
        "qwen3_5_moe_text",
        {
            "qwen3.5-35b-a3b": MOE_35B.replace(TOKENS),
            "qwen3.5-moe-nano": size(experts(16, 4, 64), **NANO).replace(LETTERS),  # type: ignore[arg-type]
        },
    ),
)
