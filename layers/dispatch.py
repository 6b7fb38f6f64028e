"""Tokens to experts of any kind, each a function of its own parameters: the ways of moe.py for experts that are no
plain gated MLPs, in plain JAX on every platform.

Dimensions: B batch, L length, T = B * L tokens, K choices, X experts, C slots, D width, N = B * C."""

import jax
import jax.numpy as jnp

from .execution import Execution
from .grouped import Function, mix
from .moe import Slots, slots_of, way_of
from .router import Routing


def dispatch(
    function: Function,
    params: tuple[jax.Array, ...],
    x_BLD: jax.Array,
    real_BL: jax.Array,
    routing: Routing,
    execution: Execution,
) -> tuple[jax.Array, jax.Array]:
    """The sum over each token's choices of function(the expert's params, x, weight): ([T, D], how many choices were
    dropped).

    params: arrays [X, ...]. function: as grouped.py says, zero where the weight is."""
    way, count = way_of(execution), params[0].shape[0]
    x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
    if way == "grouped":
        return mix(function, params, x_TD, routing.weights_TK, routing.experts_TK), jnp.float32(0)
    if way == "dense":
        chosen_TKX = routing.experts_TK[..., None] == jnp.arange(count)
        weights_XT = jnp.sum(chosen_TKX * routing.weights_TK[..., None], axis=1).T
        y_XTD = jax.vmap(function, (0, None, 0))(params, x_TD, weights_XT[..., None])
        return jnp.sum(y_XTD, axis=0), jnp.float32(0)
    return in_slots(function, params, x_BLD, routing, slots_of(routing, real_BL, count, execution.capacity))


def in_slots(
    function: Function, params: tuple[jax.Array, ...], x_BLD: jax.Array, routing: Routing, slots: Slots
) -> tuple[jax.Array, jax.Array]:
    """`dispatch` by one-hot products into a fixed number of slots an expert."""
    batch, length, width = x_BLD.shape
    chosen_BLKX, kept_BLKC = slots
    weights_BLK = routing.weights_TK.reshape(batch, length, -1)
    send_BLXC = jnp.einsum("BLKX,BLKC->BLXC", chosen_BLKX, kept_BLKC).astype(x_BLD.dtype)
    x_XND = jnp.einsum("BLXC,BLD->XBCD", send_BLXC, x_BLD).reshape(send_BLXC.shape[2], -1, width)
    weight_XN1 = jnp.einsum("BLKX,BLKC,BLK->XBC", chosen_BLKX, kept_BLKC, weights_BLK).reshape(*x_XND.shape[:2], 1)
    y_XND = jax.vmap(function)(params, x_XND, weight_XN1)
    y_BLD = jnp.einsum("BLXC,XBCD->BLD", send_BLXC, y_XND.reshape(y_XND.shape[0], batch, -1, width))
    return y_BLD.reshape(-1, width), slots.dropped()
