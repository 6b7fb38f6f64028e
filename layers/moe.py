"""Mixture of experts: each token through its chosen gated MLPs, and through the shared ones.

Shazeer et al. 2017; fine-grained and shared experts: DeepSeekMoE (Dai et al. 2024), DeepSeek-V3 (2024) eq. 12. How
tokens reach experts is the execution's business, by its `dispatch`:
  dense     every expert computes every token: the reference.
  grouped   tokens sorted by expert, dropless, at a cost independent of the number of experts (grouped.py).
  capacity  one-hot products into a fixed number of slots an expert, dropping and counting what overflows (GShard,
  Lepikhin et al.
            2020): static shapes and no sorting, the form that Neuron compiles.

Dimensions: B batch, L length, T = B * L tokens, K chosen experts, D width, X experts, F ffn of an expert, C slots, P
padded rows."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from .dense import attach, weight
from .execution import KEPT, Execution
from .grouped import mix
from .mlp import ACTIVATIONS, GatedMLP
from .router import Router, Routing, statistics
from .spec import Context, require

AXES = {"D": "width", "X": "experts", "F": "ffn"}


@dataclass(frozen=True, kw_only=True)
class MoE:
    """`experts` gated MLPs of `ffn` hidden units behind a router, beside an MLP `shared` by all tokens (None for
    none).
    """

    experts: int
    ffn: int
    router: Router
    shared: GatedMLP | None = None
    activation: str = "silu"

    def __post_init__(self) -> None:
        require(self, self.experts > 0, "experts", "it must be positive")
        require(self, self.ffn > 0, "ffn", "it must be positive")
        require(self, self.activation in ACTIVATIONS, "activation", f"it takes {', '.join(ACTIVATIONS)}")
        top_k, groups = self.router.top_k, self.router.groups
        if top_k > self.experts:
            raise ValueError(f"MoE.router.top_k is {top_k}: it cannot exceed experts, which is {self.experts}")
        if groups is not None and self.experts % groups.count:
            raise ValueError(
                f"MoE.router.groups.count is {groups.count}: it must divide experts, which is {self.experts}"
            )
        if groups is not None and top_k > self.experts // groups.count * groups.kept:
            raise ValueError(f"MoE.router.top_k is {top_k}: {groups.kept} kept groups hold too few experts")

    @property
    def experts_per_token(self) -> int:
        return self.router.top_k

    def shell(self, execution: Execution) -> nn.Module:
        return MoEShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


class Experts(NamedTuple):
    """The weights of all experts, [out, in] as in files, and their activation: decoding reads one row's experts where
    they lie only in this form (grouped.py).
    """

    gate_XFD: jax.Array
    up_XFD: jax.Array
    down_XDF: jax.Array
    activation: Callable[[jax.Array], jax.Array]


def dense(
    x_BLD: jax.Array, real_BL: jax.Array, routing: Routing, experts: Experts, factor: float
) -> tuple[jax.Array, jax.Array]:
    """All experts on all tokens, combined by weight: ([T, D], how many choices were dropped: none)."""
    x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
    chosen_TKX = routing.experts_TK[..., None] == jnp.arange(experts.gate_XFD.shape[0])
    weights_TX = jnp.sum(chosen_TKX * routing.weights_TK[..., None], axis=1).astype(x_TD.dtype)
    gate_XTF = jnp.einsum("TD,XFD->XTF", x_TD, experts.gate_XFD)
    up_XTF = jnp.einsum("TD,XFD->XTF", x_TD, experts.up_XFD)
    y_XTD = jnp.einsum("XTF,XDF->XTD", experts.activation(gate_XTF) * up_XTF, experts.down_XDF)
    return jnp.einsum("XTD,TX->TD", y_XTD, weights_TX), jnp.float32(0)


def grouped(
    x_BLD: jax.Array, real_BL: jax.Array, routing: Routing, experts: Experts, factor: float
) -> tuple[jax.Array, jax.Array]:
    """Each expert on its own tokens: ([T, D], how many choices were dropped: none)."""
    weights = experts.gate_XFD, experts.up_XFD, experts.down_XDF
    x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
    return mix(partial(_expert, experts.activation), weights, x_TD, *routing[:2]), jnp.float32(0)


def grouped_on_gpu(
    x_BLD: jax.Array, real_BL: jax.Array, routing: Routing, experts: Experts, factor: float
) -> tuple[jax.Array, jax.Array]:
    """`grouped` through kernels (grouped_gpu.py)."""
    from .grouped_gpu import mix_gated  # Pallas is slow to import, and of no use elsewhere

    matrices = experts.gate_XFD, experts.up_XFD, experts.down_XDF
    x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
    return mix_gated(x_TD, routing.experts_TK, routing.weights_TK, matrices, experts.activation), jnp.float32(0)


def _expert(
    activation: Callable[[jax.Array], jax.Array], weights: tuple[jax.Array, ...], x_RD: jax.Array, weight_R1: jax.Array
) -> jax.Array:
    """One expert's gated MLP. The weight enters before the last product, whose result backward then does not need."""
    gate_FD, up_FD, down_DF = weights
    gate_RF, up_RF = checkpoint_name((jnp.dot(x_RD, gate_FD.T), jnp.dot(x_RD, up_FD.T)), KEPT)
    return jnp.dot(activation(gate_RF) * up_RF * weight_R1.astype(x_RD.dtype), down_DF.T)


class Slots(NamedTuple):
    """One-hot: the expert of each choice, and its slot there, none if it found no room. float32."""

    chosen_BLKX: jax.Array
    kept_BLKC: jax.Array

    def dropped(self) -> jax.Array:
        """How many choices found no room."""
        found = jnp.sum(self.kept_BLKC * jnp.any(self.chosen_BLKX, -1, keepdims=True))
        return jnp.sum(self.chosen_BLKX) - found


def slots_of(routing: Routing, real_BL: jax.Array, count: int, factor: float) -> Slots:
    """Slots of `count` experts, as `capacity` hands them out."""
    (batch, length), top_k = real_BL.shape, routing.experts_TK.shape[-1]
    slots = min(length, math.ceil(factor * top_k * length / count))
    chosen_BLKX = (routing.experts_TK[..., None] == jnp.arange(count)).astype(jnp.float32)
    chosen_BLKX = chosen_BLKX.reshape(batch, length, top_k, count) * real_BL[..., None, None]
    before_BLKX = jnp.cumsum(chosen_BLKX.reshape(batch, -1, count), axis=1).reshape(chosen_BLKX.shape) - chosen_BLKX
    place_BLK = jnp.sum(before_BLKX * chosen_BLKX, axis=-1)
    kept_BLKC = (place_BLK[..., None] == jnp.arange(slots, dtype=jnp.float32)).astype(jnp.float32)
    return Slots(chosen_BLKX, kept_BLKC)


def capacity(
    x_BLD: jax.Array, real_BL: jax.Array, routing: Routing, experts: Experts, factor: float
) -> tuple[jax.Array, jax.Array]:
    """Each expert on the first tokens of each row that fit its slots: ([T, D], how many choices were dropped).

    A row gives an expert `factor` times its even share of slots; earlier tokens, and a token's better choices, come
    first. Padding takes no slot."""
    slots = slots_of(routing, real_BL, experts.gate_XFD.shape[0], factor)
    chosen_BLKX, kept_BLKC = slots
    weights_BLK = routing.weights_TK.reshape(chosen_BLKX.shape[:3])
    send_BLXC = jnp.einsum("BLKX,BLKC->BLXC", chosen_BLKX, kept_BLKC).astype(x_BLD.dtype)
    bring_BLXC = jnp.einsum("BLKX,BLKC,BLK->BLXC", chosen_BLKX, kept_BLKC, weights_BLK).astype(x_BLD.dtype)
    x_XBCD = jnp.einsum("BLXC,BLD->XBCD", send_BLXC, x_BLD)
    gate_XBCF = jnp.einsum("XBCD,XFD->XBCF", x_XBCD, experts.gate_XFD)
    up_XBCF = jnp.einsum("XBCD,XFD->XBCF", x_XBCD, experts.up_XFD)
    y_XBCD = jnp.einsum("XBCF,XDF->XBCD", experts.activation(gate_XBCF) * up_XBCF, experts.down_XDF)
    y_BLD = jnp.einsum("BLXC,XBCD->BLD", bring_BLXC, y_XBCD)
    return y_BLD.reshape(-1, y_BLD.shape[-1]), slots.dropped()


DISPATCH = {"dense": dense, "grouped": grouped, "capacity": capacity}


def way_of(execution: Execution) -> str:
    """The name in DISPATCH of how tokens reach experts in this execution."""
    default = "capacity" if execution.target == "neuron" else "grouped"
    return default if execution.dispatch == "auto" else execution.dispatch


def dispatch_of(execution: Execution) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """How tokens reach gated MLPs in this execution."""
    name = way_of(execution)
    return grouped_on_gpu if name == "grouped" and execution.target == "gpu" else DISPATCH[name]


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
        s, read_BLD = self.spec, x_BLD if routed_BLD is None else routed_BLD
        sizes = {"D": x_BLD.shape[-1], "X": s.experts, "F": s.ffn}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        routing = attach(self, s.router.shell(s.experts), "router")(read_BLD.reshape(-1, x_BLD.shape[-1]))
        gate_XFD, up_XFD = w("w_gate_XFD", inputs="D"), w("w_up_XFD", inputs="D")
        experts = Experts(gate_XFD, up_XFD, w("w_down_XDF", inputs="F"), ACTIVATIONS[s.activation])
        real_BL = context.real_BL()
        y_TD, dropped = dispatch_of(self.execution)(x_BLD, real_BL, routing, experts, self.execution.capacity)
        y_BLD = y_TD.reshape(x_BLD.shape)
        if s.shared is not None:
            y_BLD = y_BLD + attach(self, s.shared.shell(self.execution), "shared")(x_BLD, context, None)[0]
        return y_BLD, {}, statistics(routing, real_BL, s.router.top_k) | {"dropped": dropped}
