"""What one expert computes, as data: its parameters, and a function of them, of its rows and of their weights. The
gated MLP: Shazeer 2020, eq. 6.

Dimensions: D width, X experts, F ffn of an expert, R rows of one expert."""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from .execution import KEPT
from .mlp import ACTIVATIONS, Gate, hidden, is_activation
from .spec import require

AXES = {"D": "width", "X": "experts", "F": "ffn"}

Table = tuple[tuple[str, str], ...]
"""A parameter's name, and the axes that it sums over: none for a bias."""

GATED: Table = (("w_gate_XFD", "D"), ("w_up_XFD", "D"), ("w_down_XDF", "F"))
"""[out, in], as in files: decoding reads one row's experts where they lie only in this form (grouped.py)."""

BIASES: Table = (("b_gate_XF", ""), ("b_up_XF", ""), ("b_down_XD", ""))


class Expert(Protocol):
    """A frozen dataclass. Called with one expert's parameters, in the table's order and without X, its rows [R, D] and
    their weights [R, 1], it gives the weighed results [R, D]: each row for itself, and zero where the weight is.

    It is a sum over F: a part of F gives a part of the result, where parameters without F are zero in all parts but
    one.
    """

    @property
    def table(self) -> Table: ...

    def __call__(self, params: tuple[jax.Array, ...], x_RD: jax.Array, weight_R1: jax.Array) -> jax.Array: ...


@dataclass(frozen=True, kw_only=True)
class GatedExpert:
    """A gated MLP (mlp.py) times the weight."""

    activation: str | Gate = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        require(self, is_activation(self.activation), "activation", f"it takes {', '.join(ACTIVATIONS)}, or a Gate")

    @property
    def table(self) -> Table:
        return GATED + BIASES if self.bias else GATED

    def __call__(self, params: tuple[jax.Array, ...], x_RD: jax.Array, weight_R1: jax.Array) -> jax.Array:
        gate_FD, up_FD, down_DF, *biases = params
        gate_RF, up_RF = jnp.dot(x_RD, gate_FD.T), jnp.dot(x_RD, up_FD.T)
        if biases:
            gate_RF, up_RF = gate_RF + biases[0], up_RF + biases[1]
        gate_RF, up_RF = checkpoint_name((gate_RF, up_RF), KEPT)
        weight_R1 = weight_R1.astype(x_RD.dtype)
        # The weight enters before the last product, whose result backward then does not need.
        y_RD = jnp.dot(hidden(self.activation, gate_RF, up_RF) * weight_R1, down_DF.T)
        return y_RD + biases[2] * weight_R1 if biases else y_RD
