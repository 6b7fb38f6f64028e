"""Gates whose halves cannot grow beyond a limit: gpt-oss (OpenAI 2025, arXiv 2508.10925, section 2), with constants
alpha and limit; DeepSeek-V4 (DeepSeek-AI 2026), section 2.1:

    Clamped   g = min(gate, limit)    u = clip(up, -limit, limit)    g sigmoid(alpha g) (u + 1)
    Bounded   g and u as above                                       silu(g) u

Dimensions: F ffn."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .spec import require


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """limit: of what is gated, and of the gate from above."""

    limit: float = 10.0

    def __post_init__(self) -> None:
        require(self, self.limit > 0, "limit", "it must be positive")

    def __call__(self, gate_F: jax.Array, up_F: jax.Array) -> jax.Array:
        return jax.nn.silu(jnp.minimum(gate_F, self.limit)) * jnp.clip(up_F, -self.limit, self.limit)


@dataclass(frozen=True, kw_only=True)
class Clamped:
    """alpha: how steep the gate's sigmoid is.  limit: of what is gated, and of the gate from above."""

    alpha: float = 1.702
    limit: float = 7.0

    def __post_init__(self) -> None:
        require(self, self.limit > 0, "limit", "it must be positive")

    def __call__(self, gate_F: jax.Array, up_F: jax.Array) -> jax.Array:
        gate_F, up_F = jnp.minimum(gate_F, self.limit), jnp.clip(up_F, -self.limit, self.limit)
        return gate_F * jax.nn.sigmoid(self.alpha * gate_F) * (up_F + 1)
