"""How tokens reach experts on one device.

  dense     every expert computes every token: the reference.
  grouped   tokens sorted by expert, dropless, at a cost independent of the number of experts (grouped.py).
  capacity  one-hot products into a fixed number of slots an expert, dropping and counting what overflows (GShard,
            Lepikhin et al. 2020): static shapes and no sorting, the form that Neuron compiles.

A choice whose number no expert has is of nothing: it computes nothing and takes no slot.

Dimensions: B batch, L length, T = B * L tokens, K choices, X experts, C slots a row, D width, N = B * C."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .execution import Execution
from .expert import Expert, GatedExpert
from .grouped import mix
from .mlp import hidden


class Tokens(NamedTuple):
    """Tokens and what they chose. real_BL: bool, not padding. weights_BLK: float32. experts_BLK: int32, best first."""

    x_BLD: Any
    real_BL: Any
    weights_BLK: Any
    experts_BLK: Any


def dense(expert: Expert, params: tuple[jax.Array, ...], tokens: Tokens, execution: Execution) -> Any:
    """All experts on all tokens."""
    chosen_BLKX = tokens.experts_BLK[..., None] == jnp.arange(params[0].shape[0])
    weights_XBL = jnp.moveaxis(jnp.sum(chosen_BLKX * tokens.weights_BLK[..., None], axis=2), 2, 0)
    y_XTD = jax.vmap(expert, (0, None, 0))(params, _flat(tokens.x_BLD), weights_XBL.reshape(len(weights_XBL), -1, 1))
    return jnp.sum(y_XTD, axis=0).reshape(tokens.x_BLD.shape), jnp.float32(0)


def grouped(expert: Expert, params: tuple[jax.Array, ...], tokens: Tokens, execution: Execution) -> Any:
    """Each expert on its own tokens."""
    x_TD, weights_TK, experts_TK = map(_flat, (tokens.x_BLD, tokens.weights_BLK, tokens.experts_BLK))
    y_TD = mixed(expert, params, x_TD, weights_TK, experts_TK, execution)
    return y_TD.reshape(tokens.x_BLD.shape), jnp.float32(0)


def mixed(
    expert: Expert,
    params: tuple[jax.Array, ...],
    x_TD: jax.Array,
    weights_TK: jax.Array,
    experts_TK: jax.Array,
    execution: Execution,
    expected: int | None = None,
) -> jax.Array:
    """The sum over each token's choices of its expert's result: [T, D], through kernels (grouped_gpu.py) where there
    are some.

    expected: how many choices are likely to be of some expert, None for all."""
    if execution.target == "gpu" and isinstance(expert, GatedExpert):
        from .grouped_gpu import mix_gated  # Pallas is slow to import, and of no use elsewhere

        gate = partial(hidden, expert.activation)
        return mix_gated(x_TD, experts_TK, weights_TK, params, gate, expected=expected)
    return mix(expert, params, x_TD, weights_TK, experts_TK, expected)


# --- slots -----------------------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """Rows in slots and their weights; the one-hot way there [B, L, X, C]; how many choices found no slot."""

    x_XND: jax.Array
    weight_XN1: jax.Array
    send_BLXC: jax.Array
    dropped: jax.Array

    def bring(self, y_XND: jax.Array) -> jax.Array:
        """The sum over each token's slots: [B, L, D]."""
        batch, _, experts, slots = self.send_BLXC.shape
        return jnp.einsum("BLXC,XBCD->BLD", self.send_BLXC, y_XND.reshape(experts, batch, slots, -1))


def send(tokens: Tokens, count: int, factor: float) -> Sent:
    """The first tokens of each row that fit the slots of `count` experts.

    A row gives an expert `factor` times its even share of slots; earlier tokens, and a token's better choices, come
    first. Padding takes no slot."""
    (batch, length, top_k), width = tokens.experts_BLK.shape, tokens.x_BLD.shape[-1]
    slots = min(length, math.ceil(factor * top_k * length / count))
    chosen_BLKX = (tokens.experts_BLK[..., None] == jnp.arange(count)).astype(jnp.float32)
    chosen_BLKX = chosen_BLKX * tokens.real_BL[..., None, None]
    before_BLKX = jnp.cumsum(chosen_BLKX.reshape(batch, -1, count), axis=1).reshape(chosen_BLKX.shape) - chosen_BLKX
    place_BLK = jnp.sum(before_BLKX * chosen_BLKX, axis=-1)
    kept_BLKC = (place_BLK[..., None] == jnp.arange(slots, dtype=jnp.float32)).astype(jnp.float32)
    send_BLXC = jnp.einsum("BLKX,BLKC->BLXC", chosen_BLKX, kept_BLKC).astype(tokens.x_BLD.dtype)
    x_XND = jnp.einsum("BLXC,BLD->XBCD", send_BLXC, tokens.x_BLD).reshape(count, -1, width)
    weight_XBC = jnp.einsum("BLKX,BLKC,BLK->XBC", chosen_BLKX, kept_BLKC, tokens.weights_BLK)
    found = jnp.sum(kept_BLKC * jnp.any(chosen_BLKX, -1, keepdims=True))
    return Sent(x_XND, weight_XBC.reshape(count, -1, 1), send_BLXC, jnp.sum(chosen_BLKX) - found)


def capacity(expert: Expert, params: tuple[jax.Array, ...], tokens: Tokens, execution: Execution) -> Any:
    """Each expert on the tokens that find a slot, `execution.capacity` times its even share of them."""
    sent = send(tokens, params[0].shape[0], execution.capacity)
    return sent.bring(jax.vmap(expert)(params, sent.x_XND, sent.weight_XN1)), sent.dropped


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


DISPATCH = {"dense": dense, "grouped": grouped, "capacity": capacity}
