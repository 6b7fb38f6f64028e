"""Zero-computation experts: among the experts a token may choose are some that give it back as it came, so that easy
tokens cost less. MoE++: Jin et al. 2024, eq. 7; LongCat-Flash (Meituan 2025), eq. 1.

Dimensions: B batch, L length, T = B * L tokens, K chosen experts, D width, X experts that compute, F ffn of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .dense import attach, weight
from .execution import Execution
from .mlp import ACTIVATIONS
from .moe import Experts, dispatch_of, way_of
from .router import Router, Routing, statistics
from .spec import Context, require

AXES = {"D": "width", "X": "experts", "F": "ffn"}


@dataclass(frozen=True, kw_only=True)
class ZeroExperts:
    """`experts` gated MLPs of `ffn` hidden units and `identities` that compute nothing, behind one router."""

    experts: int
    identities: int
    ffn: int
    router: Router

    def __post_init__(self) -> None:
        for field in ("experts", "ffn"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        require(self, self.identities >= 0, "identities", "it cannot be negative")
        top_k, choices = self.router.top_k, self.experts + self.identities
        if top_k > choices or self.router.groups is not None:
            raise ValueError(f"ZeroExperts.router is {self.router}: it takes top_k of up to {choices}, and no groups")

    @property
    def experts_per_token(self) -> int:
        """How many of its choices compute, where all are as likely."""
        return -(-self.router.top_k * self.experts // (self.experts + self.identities))

    def shell(self, execution: Execution) -> nn.Module:
        return ZeroExpertsShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


def parted(routing: Routing, experts: int, *, in_range: bool) -> tuple[Routing, jax.Array]:
    """The choices that compute, and what the others together weigh: [T], float32.

    Choices of nothing keep their number, which no expert has, or if `in_range` have that of some expert and no
    weight."""
    computes_TK = routing.experts_TK < experts
    experts_TK = routing.experts_TK % experts if in_range else routing.experts_TK
    weights_TK = jnp.where(computes_TK, routing.weights_TK, 0)
    rest_T = jnp.sum(jnp.where(computes_TK, 0, routing.weights_TK), axis=-1)
    return routing._replace(experts_TK=experts_TK, weights_TK=weights_TK), rest_T


class ZeroExpertsShell(nn.Module):
    spec: ZeroExperts
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "X": s.experts, "F": s.ffn}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
        routing = attach(self, s.router.shell(s.experts + s.identities), "router")(x_TD)
        gate_XFD, up_XFD = w("w_gate_XFD", inputs="D"), w("w_up_XFD", inputs="D")
        experts = Experts(gate_XFD, up_XFD, w("w_down_XDF", inputs="F"), ACTIVATIONS["silu"])
        # What has no expert's number takes none of its slots; grouping by expert needs a number.
        computed, rest_T = parted(routing, s.experts, in_range=way_of(self.execution) == "grouped")
        real_BL = context.real_BL()
        y_TD, dropped = dispatch_of(self.execution)(x_BLD, real_BL, computed, experts, self.execution.capacity)
        y_TD = y_TD + x_TD * rest_T[:, None].astype(x_TD.dtype)
        return y_TD.reshape(x_BLD.shape), {}, statistics(routing, real_BL, s.router.top_k) | {"dropped": dropped}
