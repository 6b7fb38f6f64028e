"""Attention temperature: queries far into a text are scaled up, so that softmax over many keys stays as sharp as over
few. Nakanishi 2025 (arXiv 2501.19399) scales by the log of the length; Llama 4 (2025) and Ministral 3 (2025) by

    1 + strength * ln(1 + floor((position + first) / length))

which is 1 for the first `length` positions.

Dimensions: B batch, L length; any head axes and the dimensions of a head follow L.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .spec import require


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """length: positions between two steps.  strength: how steeply they rise.  first: the number of the first token,
    1 in Llama 4 and 0 in Ministral 3.
    """

    length: int
    strength: float = 0.1
    first: int = 0

    def __post_init__(self) -> None:
        require(self, self.length > 0, "length", "it must be positive")
        require(self, self.first >= 0, "first", "it cannot be negative")


def sharpen(q_BL: jax.Array, positions_BL: jax.Array, temperature: Temperature) -> jax.Array:
    """Queries [batch, length, ...] times the factor of their positions (int32), which is float32."""
    steps_BL = jnp.maximum(positions_BL + temperature.first, 0) // temperature.length  # padding is before 0
    factor_BL = 1 + temperature.strength * jnp.log1p(steps_BL.astype(jnp.float32))
    return (q_BL * factor_BL.reshape(*positions_BL.shape, *(1,) * (q_BL.ndim - 2))).astype(q_BL.dtype)
