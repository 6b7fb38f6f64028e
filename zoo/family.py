"""What a page of the zoo says of a family, and the rows of weights that most families share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..layers.decoder import Origin, Spec
from ..layers.pattern import expand
from .fields import Fields
from .tensors import Entry
from .weights import Row, rows


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """A multimodal model whose language model is of this family, under `text_config` and these prefixes of tensor
    names.
    """

    model_type: str
    prefixes: Mapping[str, str]
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture family: how its configs and checkpoints map to specs and parameters.

    name: Hugging Face's model_type, written and read; aliases are read only.  architecture: Hugging Face's class.
    read, write: config fields to a Spec and back, in the dialect of transformers 4 or 5.
    fixed: config fields that take one value, the default: others would change the mathematics.
    weights: the tensors of published checkpoints.  fused: rows that replace those of the same parameters in
    checkpoints of transformers 5.  inert: config fields without influence on the mathematics, beyond those of
    fields.INERT.  renamed: gives the tensors of a checkpoint the names of `weights`, where the published ones differ
    throughout.  counted: the field that counts modules of multi-token prediction, where a published config may leave it
    out though the checkpoint has them."""

    name: str
    architecture: str
    read: Callable[[Fields], Spec]
    write: Callable[[Spec, int], dict[str, Any]]
    weights: tuple[Row, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    fused: tuple[Row, ...] = ()
    aliases: tuple[str, ...] = ()
    inert: frozenset[str] = frozenset()
    renamed: Callable[[Mapping[str, Entry]], Mapping[str, Entry]] | None = None
    counted: str = ""
    wrapper: Wrapper | None = None
    presets: Mapping[str, Spec] = field(default_factory=dict)


PLAIN = {"hidden_act": "silu", "attention_dropout": 0.0}
"""Fixed in most families."""


def presets(family: str, specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """The specs, marked as this family's."""
    return {name: spec.replace(hf=Origin(family=family)) for name, spec in specs.items()}


def tailed(layers: Sequence[Any]) -> tuple[Any, ...]:
    """These layers as a pattern over depth that repeats its last entry, as short as it can be."""
    end = len(layers)
    while end > 1 and layers[end - 2] == layers[-1]:
        end -= 1
    return (*layers[:end], ...)


def shortest(layers: Sequence[Any]) -> tuple[Any, ...]:
    """The shortest pattern over depth whose repetition gives these layers."""
    layers = tuple(layers)
    return next(layers[:n] for n in range(1, len(layers) + 1) if expand(layers[:n], len(layers)) == layers)


EMBEDDINGS = rows(
    ("model.embed_tokens.weight", "V D", "embed_VD"),
    ("model.norm.weight", "D", "final_norm/scale_D"),
    ("lm_head.weight", "V D", "head_DV"),
)

ATTENTION = rows(
    ("model.layers.{l}.self_attn.q_proj.weight", "(K G E) D", "attention/wq_DKGE"),
    ("model.layers.{l}.self_attn.k_proj.weight", "(K E) D", "attention/wk_DKE"),
    ("model.layers.{l}.self_attn.v_proj.weight", "(K E) D", "attention/wv_DKE"),
    ("model.layers.{l}.self_attn.o_proj.weight", "D (K G E)", "attention/wo_KGED"),
    ("model.layers.{l}.self_attn.q_proj.bias", "(K G E)", "attention/bq_KGE"),
    ("model.layers.{l}.self_attn.k_proj.bias", "(K E)", "attention/bk_KE"),
    ("model.layers.{l}.self_attn.v_proj.bias", "(K E)", "attention/bv_KE"),
    ("model.layers.{l}.self_attn.o_proj.bias", "D", "attention/bo_D"),
)

HEAD_NORMS = rows(
    ("model.layers.{l}.self_attn.q_norm.weight", "E", "attention/q_norm/scale_E"),
    ("model.layers.{l}.self_attn.k_norm.weight", "E", "attention/k_norm/scale_E"),
)

WIDTH_NORMS = rows(
    ("model.layers.{l}.self_attn.q_norm.weight", "(K G E)", "attention/q_norm/scale_KGE"),
    ("model.layers.{l}.self_attn.k_norm.weight", "(K E)", "attention/k_norm/scale_KE"),
)

MLP = rows(
    ("model.layers.{l}.mlp.gate_proj.weight", "F D", "mlp/w_gate_DF"),
    ("model.layers.{l}.mlp.up_proj.weight", "F D", "mlp/w_up_DF"),
    ("model.layers.{l}.mlp.down_proj.weight", "D F", "mlp/w_down_FD"),
    ("model.layers.{l}.mlp.gate_proj.bias", "F", "mlp/b_gate_F"),
    ("model.layers.{l}.mlp.up_proj.bias", "F", "mlp/b_up_F"),
    ("model.layers.{l}.mlp.down_proj.bias", "D", "mlp/b_down_D"),
)

EXPERTS = rows(
    ("model.layers.{l}.mlp.gate.weight", "X D", "mlp/router/w_DX"),
    ("model.layers.{l}.mlp.experts.{e}.gate_proj.weight", "F D", "mlp/w_gate_XFD"),
    ("model.layers.{l}.mlp.experts.{e}.up_proj.weight", "F D", "mlp/w_up_XFD"),
    ("model.layers.{l}.mlp.experts.{e}.down_proj.weight", "D F", "mlp/w_down_XDF"),
)

FUSED_EXPERTS = rows(
    ("model.layers.{l}.mlp.experts.gate_up_proj", "X [F F] D", "mlp/w_gate_XFD", "mlp/w_up_XFD"),
    ("model.layers.{l}.mlp.experts.down_proj", "X D F", "mlp/w_down_XDF"),
)

POST_NORMS = rows(
    ("model.layers.{l}.post_attention_layernorm.weight", "D", "attention_after/scale_D"),
    ("model.layers.{l}.post_feedforward_layernorm.weight", "D", "mlp_after/scale_D"),
)

PREDICTION = rows(
    ("model.layers.{l}.enorm.weight", "D", "norm_token/scale_D"),
    ("model.layers.{l}.hnorm.weight", "D", "norm_hidden/scale_D"),
    ("model.layers.{l}.eh_proj.weight", "D I", "w_ID"),
    ("model.layers.{l}.shared_head.norm.weight", "D", "final_norm/scale_D"),
)
"""Multi-token prediction; a module's layer has the names of any other."""

SANDWICH_NORMS = rows(
    ("model.layers.{l}.input_layernorm.weight", "D", "attention_before/scale_D"),
    ("model.layers.{l}.post_attention_layernorm.weight", "D", "attention_after/scale_D"),
    ("model.layers.{l}.pre_feedforward_layernorm.weight", "D", "mlp_before/scale_D"),
    ("model.layers.{l}.post_feedforward_layernorm.weight", "D", "mlp_after/scale_D"),
)

PRE_NORMS = rows(
    ("model.layers.{l}.input_layernorm.weight", "D", "attention_before/scale_D"),
    ("model.layers.{l}.post_attention_layernorm.weight", "D", "mlp_before/scale_D"),
)
