"""Experts of clamped SwiGLU with biases everywhere: gpt-oss (OpenAI 2025, arXiv 2508.10925, section 2). Of x, with
alpha and limit constants,

    g = min(gate x + b, limit)    u = clip(up x + b', -limit, limit)    down (g sigmoid(alpha g) (u + 1)) + b''

Dimensions: D width, X experts, F ffn of an expert, R rows of one expert."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from .execution import KEPT
from .expert import GATED, Table
from .spec import require


@dataclass(frozen=True, kw_only=True)
class ClampedExpert:
    """alpha: how steep the gate's sigmoid is.  limit: of what is gated and of the gate, from above."""

    alpha: float = 1.702
    limit: float = 7.0

    TABLE: ClassVar[Table] = (*GATED, ("b_gate_XF", ""), ("b_up_XF", ""), ("b_down_XD", ""))

    def __post_init__(self) -> None:
        require(self, self.limit > 0, "limit", "it must be positive")

    def __call__(self, params: tuple[jax.Array, ...], x_RD: jax.Array, weight_R1: jax.Array) -> jax.Array:
        gate_FD, up_FD, down_DF, gate_F, up_F, down_D = params
        gate_RF, up_RF = checkpoint_name((jnp.dot(x_RD, gate_FD.T) + gate_F, jnp.dot(x_RD, up_FD.T) + up_F), KEPT)
        gate_RF, up_RF = jnp.minimum(gate_RF, self.limit), jnp.clip(up_RF, -self.limit, self.limit)
        hidden_RF = gate_RF * jax.nn.sigmoid(self.alpha * gate_RF) * (up_RF + 1)
        weight_R1 = weight_R1.astype(x_RD.dtype)
        return jnp.dot(hidden_RF * weight_R1, down_DF.T) + down_D * weight_R1
