"""Qwen3.5 (Qwen team 2026), the language model: Qwen3-Next's layers with dense MLPs, or with experts. Its module of
multi-token prediction, too, stays where the rest of a multimodal checkpoint is left out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from .family import EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS, Family, Wrapper, presets
from .fields import Fields
from .hybrid import DELTA, FUSED_MODULE, GATED, MODULE, SHARED
from .qwen3_next import (
    DELTA_32,
    LETTERS,
    NANO,
    experts,
    predicting,
    read_experts,
    read_mixers,
    size,
    write_experts,
    write_mixers,
)
from .weights import rows

COUNTED = "mtp_num_hidden_layers"
INERT = frozenset({"mamba_ssm_dtype"})


def of_text(c: Fields) -> Fields:
    """The config without the shares of rope that time, height and width have: of text, all three are the position."""
    kept = dict(c.config)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(kept.get(name), Mapping):
            kept[name] = {k: v for k, v in kept[name].items() if k not in ("mrope_interleaved", "mrope_section")}
    fields = Fields(kept)
    fields.taken = c.taken
    fields.only("attn_output_gate", True)
    fields.only("output_gate_type", "swish")  # of linear attention
    fields.only("mtp_use_dedicated_embeddings", False)
    return fields


def read(c: Fields) -> Spec:
    defaults = {"num_key_value_heads": 4, "intermediate_size": 12_288}
    c = of_text(c).over(defaults)
    mlp = GatedMLP(ffn=c.int("intermediate_size"))
    return read_mixers(c, (mlp,), COUNTED, mlp)


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    return write_mixers(spec, dialect) | counted(spec) | {"intermediate_size": spec.mlp[0].ffn}


def counted(spec: Spec) -> dict[str, Any]:
    return {COUNTED: spec.mtp.depth} if spec.mtp else {}


def read_moe(c: Fields) -> Spec:
    c = of_text(c).over({"num_experts": 256, "num_experts_per_tok": 8})
    mlp = read_experts(c, renormalise=True)
    return read_mixers(c, (mlp,), COUNTED, mlp)


def write_moe(spec: Spec, dialect: int) -> dict[str, Any]:
    return write_mixers(spec, dialect) | counted(spec) | write_experts(spec.mlp[0])


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
        left_out=("model.visual.",),
    )


# Class defaults of transformers, which names the 9B and the 35B; published: their theta, positions, module and ids of
# tokens, and all of the 27B.
SIZES = {"heads": 16, "head_dim": 256, "delta": DELTA_32}
DENSE_9B = size(GatedMLP(ffn=12_288), width=4096, depth=32, kv_heads=4, **SIZES)  # type: ignore[arg-type]
MOE_35B = size(experts(256, 8, 512), width=2048, depth=40, kv_heads=2, **SIZES)  # type: ignore[arg-type]
TOKENS = {"vocab": 248_320, "bos_id": None, "eos_ids": (248_044,)}
WIDE = {
    "width": 5120,
    "depth": 64,
    "heads": 24,
    "kv_heads": 4,
    "head_dim": 256,
    "delta": replace(DELTA_32, value_heads=48),
}
DENSE_27B = size(GatedMLP(ffn=17_408), **WIDE).replace(TOKENS, bos_id=248_044)  # type: ignore[arg-type]

DENSE = Family(
    name="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    read=read,
    write=write,
    weights=EMBEDDINGS + PRE_NORMS + GATED + DELTA + PROJECTIONS + MLP + MODULE,
    inert=INERT,
    counted=COUNTED,
    wrapper=wrapper("qwen3_5"),
    presets=presets(
        "qwen3_5_text",
        {
            "qwen3.5-9b": predicting(DENSE_9B.replace(TOKENS)),
            "qwen3.6-27b": predicting(DENSE_27B),
            "qwen3.5-nano": size(GatedMLP(ffn=320), **NANO).replace(LETTERS),  # type: ignore[arg-type]
        },
    ),
)

MOE = Family(
    name="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    read=read_moe,
    write=write_moe,
    weights=EMBEDDINGS + PRE_NORMS + GATED + DELTA + PROJECTIONS + EXPERTS + SHARED + MODULE,
    fused=FUSED_EXPERTS + FUSED_MODULE,
    inert=INERT,
    counted=COUNTED,
    wrapper=wrapper("qwen3_5_moe"),
    presets=presets(
        "qwen3_5_moe_text",
        {
            "qwen3.5-35b-a3b": predicting(MOE_35B.replace(TOKENS)),
            "qwen3.5-moe-nano": size(experts(16, 4, 64), **NANO).replace(LETTERS),  # type: ignore[arg-type]
        },
    ),
)
