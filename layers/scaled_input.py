"""Experts that read a token times its router score, where others weigh what experts give: Llama 4 (Meta 2025). With no
linear expert the two differ: y = shared(x) + sum over the chosen of expert(score x).

Dimensions: B batch, L length, T = B * L tokens, D width, X experts, F ffn of an expert, R rows of one expert."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from .dense import attach, weight
from .dispatch import dispatch
from .execution import KEPT, Execution
from .mlp import GatedMLP
from .router import Router, statistics
from .spec import Context, require

AXES = {"D": "width", "X": "experts", "F": "ffn"}


@dataclass(frozen=True, kw_only=True)
class ScaledInputMoE:
    """`experts` gated MLPs of `ffn` hidden units behind a router, beside an MLP `shared` by all tokens (None for
    none).
    """

    experts: int
    ffn: int
    router: Router
    shared: GatedMLP | None = None

    def __post_init__(self) -> None:
        for field in ("experts", "ffn"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        if self.router.top_k > self.experts:
            raise ValueError(
                f"ScaledInputMoE.router.top_k is {self.router.top_k}: it cannot exceed experts, which is {self.experts}"
            )

    @property
    def experts_per_token(self) -> int:
        return self.router.top_k

    def shell(self, execution: Execution) -> nn.Module:
        return ScaledInputMoEShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


def scaled_expert(params: tuple[jax.Array, ...], x_RD: jax.Array, weight_R1: jax.Array) -> jax.Array:
    """One expert's gated MLP of rows times their weights: nothing of a row without weight, as it has no bias."""
    gate_FD, up_FD, down_DF = params
    x_RD = x_RD * weight_R1.astype(x_RD.dtype)
    gate_RF, up_RF = checkpoint_name((jnp.dot(x_RD, gate_FD.T), jnp.dot(x_RD, up_FD.T)), KEPT)
    return jnp.dot(jax.nn.silu(gate_RF) * up_RF, down_DF.T)


class ScaledInputMoEShell(nn.Module):
    spec: ScaledInputMoE
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "X": s.experts, "F": s.ffn}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        routing = attach(self, s.router.shell(s.experts), "router")(x_BLD.reshape(-1, x_BLD.shape[-1]))
        params = w("w_gate_XFD", inputs="D"), w("w_up_XFD", inputs="D"), w("w_down_XDF", inputs="F")
        real_BL = context.real_BL()
        y_TD, dropped = dispatch(scaled_expert, params, x_BLD, real_BL, routing, self.execution)
        y_BLD = y_TD.reshape(x_BLD.shape)
        if s.shared is not None:
            y_BLD = y_BLD + attach(self, s.shared.shell(self.execution), "shared")(x_BLD, context, None)[0]
        return y_BLD, {}, statistics(routing, real_BL, s.router.top_k) | {"dropped": dropped}
