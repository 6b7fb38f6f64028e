"""A gated MLP whose output each token weighs: the shared expert of Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024,
arXiv 2407.10671, section 2.2.2), which every token passes but does not need equally.

    y = sigmoid(x . w) MLP(x)

Dimensions: B batch, L length, D width, F ffn.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from .execution import Execution
from .mlp import AXES as AXES  # those of its parameters and of the one here
from .mlp import GatedMLP, GatedMLPShell
from .spec import Context


@dataclass(frozen=True, kw_only=True)
class WeighedMLP(GatedMLP):
    """A GatedMLP times a number between 0 and 1 that the token itself gives."""

    def shell(self, execution: Execution) -> nn.Module:
        return WeighedMLPShell(self, execution)


class WeighedMLPShell(GatedMLPShell):
    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        y_BLD, entries, aux = super().__call__(x_BLD, context, cache)
        width = x_BLD.shape[-1]
        w_D = self.param("weigh_D", nn.initializers.normal(width**-0.5), (width,), jnp.float32)
        return y_BLD * share(x_BLD, w_D).astype(y_BLD.dtype), entries, aux


def share(x_BLD: jax.Array, w_D: jax.Array) -> jax.Array:
    """float32 [batch, length, 1]: how much of the MLP's output a token takes."""
    logits_BL = jnp.einsum("BLD,D->BL", x_BLD, w_D.astype(x_BLD.dtype), preferred_element_type=jnp.float32)
    return jax.nn.sigmoid(logits_BL)[..., None]
