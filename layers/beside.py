"""A gated MLP beside routed experts, each between norms of its own (Gemma 4, Google DeepMind 2026):

    y = norm(norm_1(MLP(norm(x))) + norm_2(experts(norm_3(x), router(x))))

The router normalises the residual itself, with a scale of its own, and multiplies each chosen expert's weight by a
learned number.

Dimensions: B batch, L length, D width, T = B * L tokens, X experts, K chosen experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .dense import attach
from .execution import Execution
from .mlp import GatedMLP
from .moe import MoE
from .norms import RMSNorm, rms_norm
from .router import AnyRouter, Router, Routing, route
from .spec import Context, require

AXES = {"D": "width", "X": "routes"}


@dataclass(frozen=True, kw_only=True)
class NormedRouter(Router):
    """A Router that normalises what it reads, and learns by how much each expert counts once it is chosen."""

    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.eps > 0, "eps", "it must be positive")

    def shell(self, experts: int) -> nn.Module:
        return NormedRouterShell(self, experts)


class NormedRouterShell(nn.Module):
    spec: NormedRouter
    experts: int

    @nn.compact
    def __call__(self, x_TD: jax.Array, tokens_T: jax.Array) -> Routing:
        width = x_TD.shape[-1]
        scale_D = self.param("scale_D", nn.initializers.ones, (width,), jnp.float32)
        w_DX = self.param("w_DX", nn.initializers.normal(1.0), (width, self.experts), jnp.float32)
        gain_X = self.param("gain_X", nn.initializers.ones, (self.experts,), jnp.float32)
        read_TD = rms_norm(x_TD.astype(jnp.float32), scale_D, self.spec.eps) * width**-0.5
        routing = route(read_TD, w_DX, None, self.spec)
        gain_TK = gain_X.astype(jnp.float32)[routing.experts_TK]
        return routing._replace(weights_TK=routing.weights_TK * gain_TK)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A dense MLP and experts, both given the residual as it stands."""

    dense: GatedMLP
    experts: MoE
    norm: RMSNorm = RMSNorm()

    @property
    def router(self) -> AnyRouter:
        return self.experts.router

    def shell(self, execution: Execution) -> nn.Module:
        return BesideShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


class BesideShell(nn.Module):
    spec: Beside
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s = self.spec

        def norm(name: str, x: jax.Array) -> jax.Array:
            y: jax.Array = attach(self, s.norm.shell(self.execution), name)(x)
            return y

        dense, experts = (attach(self, getattr(s, n).shell(self.execution), n) for n in ("dense", "experts"))
        y_BLD, _, _ = dense(norm("dense_before", x_BLD), context, None)
        z_BLD, _, aux = experts(norm("experts_before", x_BLD), context, None, x_BLD)
        y_BLD = norm("dense_after", y_BLD) + norm("experts_after", z_BLD)
        return norm("after", y_BLD), {}, aux
