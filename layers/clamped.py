"""Experts of clamped SwiGLU with biases everywhere, the router's logits included: gpt-oss (OpenAI 2025, arXiv
2508.10925, section 2). Of x, with alpha and limit constants,

    g = min(gate x + b, limit)    u = clip(up x + b', -limit, limit)    down (g sigmoid(alpha g) (u + 1)) + b''

Dimensions: B batch, L length, T = B * L tokens, D width, X experts, F ffn of an expert, R rows of one expert."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from .dense import attach, bias, weight
from .dispatch import dispatch
from .execution import KEPT, Execution
from .router import Router, Routing, choose, statistics
from .spec import Context, require

AXES = {"D": "width", "X": "experts", "F": "ffn"}


@dataclass(frozen=True, kw_only=True)
class ClampedMoE:
    """`experts` clamped gated MLPs of `ffn` hidden units behind a router whose logits have a learned bias.

    alpha: how steep the gate's sigmoid is.  limit: of what is gated and of the gate, from above.
    """

    experts: int
    ffn: int
    router: Router
    alpha: float = 1.702
    limit: float = 7.0

    def __post_init__(self) -> None:
        for field in ("experts", "ffn", "limit"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        if self.router.top_k > self.experts:
            raise ValueError(
                f"ClampedMoE.router.top_k is {self.router.top_k}: it cannot exceed experts, which is {self.experts}"
            )

    @property
    def experts_per_token(self) -> int:
        return self.router.top_k

    def shell(self, execution: Execution) -> nn.Module:
        return ClampedMoEShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


def clamped_expert(
    alpha: float, limit: float, params: tuple[jax.Array, ...], x_RD: jax.Array, weight_R1: jax.Array
) -> jax.Array:
    """One expert on its rows, times their weights."""
    gate_FD, up_FD, down_DF, gate_F, up_F, down_D = params
    gate_RF, up_RF = checkpoint_name((jnp.dot(x_RD, gate_FD.T) + gate_F, jnp.dot(x_RD, up_FD.T) + up_F), KEPT)
    gate_RF, up_RF = jnp.minimum(gate_RF, limit), jnp.clip(up_RF, -limit, limit)
    hidden_RF = gate_RF * jax.nn.sigmoid(alpha * gate_RF) * (up_RF + 1)
    weight_R1 = weight_R1.astype(x_RD.dtype)
    return jnp.dot(hidden_RF * weight_R1, down_DF.T) + down_D * weight_R1


class BiasedRouterShell(nn.Module):
    """A router whose logits are shifted, for its weights as for its choices: unlike a selection bias, it is learned."""

    spec: Router
    experts: int

    @nn.compact
    def __call__(self, x_TD: jax.Array) -> Routing:
        width = x_TD.shape[-1]
        w_DX = self.param("w_DX", nn.initializers.normal(width**-0.5), (width, self.experts), jnp.float32)
        b_X = self.param("b_X", nn.initializers.zeros, (self.experts,), jnp.float32)
        bias_X = self.param("bias_X", nn.initializers.zeros, (self.experts,), jnp.float32) if self.spec.bias else None
        logits_TX = jnp.dot(x_TD.astype(jnp.float32), w_DX.astype(jnp.float32)) + b_X.astype(jnp.float32)
        return choose(logits_TX, bias_X, self.spec)


class ClampedMoEShell(nn.Module):
    spec: ClampedMoE
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "X": s.experts, "F": s.ffn}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        b = partial(bias, self, sizes=sizes, execution=self.execution)
        routing = attach(self, BiasedRouterShell(s.router, s.experts), "router")(x_BLD.reshape(-1, x_BLD.shape[-1]))
        weights = w("w_gate_XFD", inputs="D"), w("w_up_XFD", inputs="D"), w("w_down_XDF", inputs="F")
        params = (*weights, b("b_gate_XF"), b("b_up_XF"), b("b_down_XD"))
        expert, real_BL = partial(clamped_expert, s.alpha, s.limit), context.real_BL()
        y_TD, dropped = dispatch(expert, params, x_BLD, real_BL, routing, self.execution)
        return y_TD.reshape(x_BLD.shape), {}, statistics(routing, real_BL, s.router.top_k) | {"dropped": dropped}
