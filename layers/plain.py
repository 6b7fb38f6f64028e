"""The MLP without a gate, and the activation that learns its own shape.

Two matrices and an activation: Vaswani et al. 2017, eq. 2. xIELU: Huang & Schlag 2024 (arXiv 2411.13010), the integral
of an ELU, as Apertus (Swiss AI 2025, arXiv 2509.14233) has it:

    a x^2 + c x                  for x > 0
    b (exp(x) - 1 - x) + c x     otherwise

a = softplus(rise) and b = c + softplus(fall) are learned, one of each a layer; the slope c at 0 is not.

Experts without a gate: Nemotron 3 (NVIDIA 2025), squared ReLUs (So et al. 2021, section 3.2).

Dimensions: B batch, L length, D width, F ffn, X experts, R rows of one expert.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from .dense import bias, project, weight
from .execution import KEPT, Execution
from .expert import Table
from .mlp import ACTIVATIONS
from .spec import Context, require

AXES = {"D": "width", "F": "ffn"}
XIELU = "xielu"


@dataclass(frozen=True, kw_only=True)
class MLP:
    """down(activation(up x)), through `ffn` hidden units.

    activation: "xielu", or one of a GatedMLP.
    """

    ffn: int
    activation: str = XIELU
    bias: bool = False

    def __post_init__(self) -> None:
        require(self, self.ffn > 0, "ffn", "it must be positive")
        known = (XIELU, *ACTIVATIONS)
        require(self, self.activation in known, "activation", f"it takes {', '.join(known)}")

    def shell(self, execution: Execution) -> nn.Module:
        return MLPShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class PlainExpert:
    """down(activation(up x)) times the weight: an expert of a MoE."""

    activation: str = "relu2"

    def __post_init__(self) -> None:
        require(self, self.activation in ACTIVATIONS, "activation", f"it takes {', '.join(ACTIVATIONS)}")

    @property
    def table(self) -> Table:
        return ("w_up_XFD", "D"), ("w_down_XDF", "F")

    def __call__(self, params: tuple[jax.Array, ...], x_RD: jax.Array, weight_R1: jax.Array) -> jax.Array:
        up_FD, down_DF = params
        up_RF = checkpoint_name(jnp.dot(x_RD, up_FD.T), KEPT)
        return jnp.dot(ACTIVATIONS[self.activation](up_RF) * weight_R1.astype(x_RD.dtype), down_DF.T)


class Shape(NamedTuple):
    """What an xIELU looks like, float32 scalars. edge: exp(x) - 1 is computed of no x above it."""

    rise: float | jax.Array
    fall: float | jax.Array
    slope: float | jax.Array
    edge: float | jax.Array


START = Shape(math.log(math.expm1(0.8)), math.log(math.expm1(0.3)), 0.5, -1e-6)
"""Where they start: a = b = 0.8."""


def xielu(x: jax.Array, shape: Shape) -> jax.Array:
    """xIELU in float32, returned in x's dtype."""
    x_f32 = x.astype(jnp.float32)
    a, b = jax.nn.softplus(shape.rise), shape.slope + jax.nn.softplus(shape.fall)
    below = b * (jnp.expm1(jnp.minimum(x_f32, shape.edge)) - x_f32)
    return (jnp.where(x_f32 > 0, a * jnp.square(x_f32), below) + shape.slope * x_f32).astype(x.dtype)


class MLPShell(nn.Module):
    spec: MLP
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s, sizes = self.spec, {"D": x_BLD.shape[-1], "F": self.spec.ffn}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        b = partial(bias, self, sizes=sizes, execution=self.execution)
        up_BLF = project("BLD,DF->BLF", x_BLD, w("w_up_DF", inputs="D"))
        up_BLF = up_BLF + b("b_up_F") if s.bias else up_BLF
        hidden_BLF = self._xielu(up_BLF) if s.activation == XIELU else ACTIVATIONS[s.activation](up_BLF)
        y_BLD = project("BLF,FD->BLD", hidden_BLF, w("w_down_FD", inputs="F"))
        return y_BLD + b("b_down_D") if s.bias else y_BLD, {}, {}

    def _xielu(self, x: jax.Array) -> jax.Array:
        # Scalars: a name that ends in _ has no axes. Checkpoints hold all four; the last two are not trained.
        rise, fall, slope, edge = (
            self.param(f"{name}_", nn.initializers.constant(start), (), jnp.float32).astype(jnp.float32)
            for name, start in START._asdict().items()
        )
        return xielu(x, Shape(rise, fall, jax.lax.stop_gradient(slope), jax.lax.stop_gradient(edge)))
