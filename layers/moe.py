"""Mixture of experts: each token through its chosen experts, and through the shared one.

Shazeer et al. 2017; fine-grained and shared experts: DeepSeekMoE (Dai et al. 2024), DeepSeek-V3 (2024) eq. 12. What an
expert computes is a spec of its own (expert.py); how tokens reach experts is the execution's business (dispatch.py).

Zero-computation experts: among what a token may choose are some that give it back as it came, so that easy tokens cost
less. MoE++: Jin et al. 2024, eq. 7; LongCat-Flash (Meituan 2025), eq. 1.

Dimensions: B batch, L length, T = B * L tokens, K chosen experts, D width, X experts that compute, F ffn of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .dense import attach, bias, weight
from .dispatch import dispatch
from .execution import Execution
from .expert import AXES as AXES  # those of the parameters here
from .expert import Expert, GatedExpert
from .mlp import GatedMLP
from .plain import MLP
from .router import AnyRouter, Routing, statistics
from .spec import Context, require
from .ways import Tokens


@dataclass(frozen=True, kw_only=True)
class MoE:
    """`experts` of `ffn` hidden units behind a router, beside an MLP `shared` by all tokens (None for none).

    expert: what each computes.  identities: how many more a token may choose that compute nothing.
    """

    experts: int
    ffn: int
    router: AnyRouter
    shared: GatedMLP | MLP | None = None
    expert: Expert = GatedExpert()
    identities: int = 0

    def __post_init__(self) -> None:
        require(self, self.experts > 0, "experts", "it must be positive")
        require(self, self.ffn > 0, "ffn", "it must be positive")
        require(self, self.identities >= 0, "identities", "it cannot be negative")
        top_k, groups, routes = self.router.top_k, self.router.groups, self.routes
        name = "experts and identities, which are" if self.identities else "experts, which is"
        if top_k > routes:
            raise ValueError(f"MoE.router.top_k is {top_k}: it cannot exceed {name} {routes}")
        if groups is not None and routes % groups.count:
            raise ValueError(f"MoE.router.groups.count is {groups.count}: it must divide {name} {routes}")
        if groups is not None and top_k > routes // groups.count * groups.kept:
            raise ValueError(f"MoE.router.top_k is {top_k}: {groups.kept} kept groups hold too few experts")

    @property
    def routes(self) -> int:
        """What a token chooses among."""
        return self.experts + self.identities

    @property
    def experts_per_token(self) -> int:
        """How many of its choices compute, where all are as likely."""
        return -(-self.router.top_k * self.experts // self.routes)

    def shell(self, execution: Execution) -> nn.Module:
        return MoEShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


def of_nothing(routing: Routing, experts: int) -> jax.Array:
    """What the choices that no expert computes weigh together: [T, 1], float32."""
    return jnp.sum(jnp.where(routing.experts_TK < experts, 0, routing.weights_TK), axis=-1, keepdims=True)


class MoEShell(nn.Module):
    spec: MoE
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        cache: Mapping[str, jax.Array] | None,
        routed_BLD: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        """routed_BLD: what the router reads, where that is not what the experts do."""
        s, read_BLD, (*rows, width) = self.spec, x_BLD if routed_BLD is None else routed_BLD, x_BLD.shape
        sizes = {"D": width, "X": s.experts, "F": s.ffn}
        read_TD, tokens_T = read_BLD.reshape(-1, read_BLD.shape[-1]), context.tokens_BL.reshape(-1)
        routing = attach(self, s.router.shell(s.routes), "router")(read_TD, tokens_T)
        params = tuple(
            weight(self, name, sizes, inputs, self.execution) if inputs else bias(self, name, sizes, self.execution)
            for name, inputs in s.expert.table
        )
        real_BL = context.real_BL()
        tokens = Tokens(x_BLD, real_BL, routing.weights_TK.reshape(*rows, -1), routing.experts_TK.reshape(*rows, -1))
        y_BLD, dropped = dispatch(s.expert, params, tokens, self.execution)
        if s.identities:
            y_BLD = y_BLD + x_BLD * of_nothing(routing, s.experts).reshape(*rows, 1).astype(x_BLD.dtype)
        if s.shared is not None:
            y_BLD = y_BLD + attach(self, s.shared.shell(self.execution), "shared")(x_BLD, context, None)[0]
        return y_BLD, {}, statistics(routing, real_BL, s.router.top_k) | {"dropped": dropped}
