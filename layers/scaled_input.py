"""Experts that read a token times its router score, where others weigh what experts give: Llama 4 (Meta 2025). With no
linear expert the two differ: y = shared(x) + sum over the chosen of expert(score x).

Dimensions: D width, X experts, F ffn of an expert, R rows of one expert."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from .execution import KEPT
from .expert import GATED, Table


@dataclass(frozen=True, kw_only=True)
class ScaledInputExpert:
    """A gated MLP of rows times their weights: nothing of a row without weight, as it has no bias."""

    @property
    def table(self) -> Table:
        return GATED

    def __call__(self, params: tuple[jax.Array, ...], x_RD: jax.Array, weight_R1: jax.Array) -> jax.Array:
        gate_FD, up_FD, down_DF = params
        x_RD = x_RD * weight_R1.astype(x_RD.dtype)
        gate_RF, up_RF = checkpoint_name((jnp.dot(x_RD, gate_FD.T), jnp.dot(x_RD, up_FD.T)), KEPT)
        return jnp.dot(jax.nn.silu(gate_RF) * up_RF, down_DF.T)
