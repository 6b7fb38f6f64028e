"""Products of queries and keys, and what hides them: causality, windows, packed documents.

Products are batched over N = B * K and have the queries of a group as rows, R = G * L: forms that XLA runs without
transposing scores.

Dimensions: as in attention.py."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

HIDDEN = -1e30
"""The score of a key that must not be seen: finite, so that a query that sees none stays finite too."""


class Keys(NamedTuple):
    """Keys and values to attend to.

    slots_BM: int32 place in the row, -1 for nothing there; segments_BM: packed document, or None.
    """

    k_BMKE: jax.Array
    v_BMKU: jax.Array
    slots_BM: jax.Array
    segments_BM: jax.Array | None = None


class Queries(NamedTuple):
    q_BLKGE: jax.Array
    slots_BL: jax.Array
    segments_BL: jax.Array | None = None


class Rule(NamedTuple):
    """What attention is, apart from its arrays."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    by_row: int = 0  # so many rows of queries or fewer have scores by a product each


SeenBy = tuple[jax.Array, jax.Array | None, jax.Array, jax.Array | None]
"""Slots and segments of queries and of keys: slots_BL, segments_BL, slots_BM, segments_BM."""


class Block(NamedTuple):
    """Queries [start, end) and the keys [first, last) that hold all they see."""

    start: int
    end: int
    first: int
    last: int


def rows(x_BLKGE: jax.Array, block: Block | None = None) -> jax.Array:
    """The queries of a block, or all, or what belongs to them: [B, L, K, G, E] -> [N, R, E]."""
    batch, _, kv_heads, _, dim = x_BLKGE.shape
    x = x_BLKGE if block is None else x_BLKGE[:, block.start : block.end]
    return x.transpose(0, 2, 3, 1, 4).reshape(batch * kv_heads, -1, dim)


def unrows(x_NRE: jax.Array, like_BLKGE: jax.Array) -> jax.Array:
    batch, _, kv_heads, group, _ = like_BLKGE.shape
    return x_NRE.reshape(batch, kv_heads, group, -1, x_NRE.shape[-1]).transpose(0, 3, 1, 2, 4)


def by_head(x_BMKE: jax.Array) -> jax.Array:
    """[B, M, K, E] -> [N, M, E]."""
    batch, length, kv_heads, dim = x_BMKE.shape
    return x_BMKE.transpose(0, 2, 1, 3).reshape(batch * kv_heads, length, dim)


def unhead(x_NME: jax.Array, like_BMKE: jax.Array) -> jax.Array:
    batch, length, kv_heads, _ = like_BMKE.shape
    return jnp.moveaxis(x_NME.reshape(batch, kv_heads, length, -1), 1, 2)


def dot(x_N: jax.Array, y_N: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """A batch of products that sum over these axes, float32."""
    return jax.lax.dot_general(x_N, y_N, (((x_axis,), (y_axis,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def masked_scores(q_NRE: jax.Array, k_NME: jax.Array, seen_by: SeenBy, rule: Rule) -> jax.Array:
    """Masked scores [N, R, M]."""
    seen_BLM = seen(seen_by, rule.window)
    few = q_NRE.shape[1] <= rule.by_row
    each = jnp.split(q_NRE, q_NRE.shape[1], axis=1) if few else [q_NRE]
    scores_NRM = jnp.concatenate([dot(q_NrE, k_NME, 2, 2) for q_NrE in each], axis=1)
    scores_NRM = capped(scores_NRM * rule.scale, rule.softcap)
    batch, length, keys = seen_BLM.shape
    scores = scores_NRM.reshape(batch, -1, length, keys)
    return jnp.where(seen_BLM[:, None], scores, HIDDEN).reshape(scores_NRM.shape)


def seen(seen_by: SeenBy, window: int | None) -> jax.Array:
    """bool [B, L, M]: which keys a query sees."""
    slots_BL, segments_BL, slots_BM, segments_BM = seen_by
    q_slots, k_slots = slots_BL[:, :, None], slots_BM[:, None, :]
    seen_BLM = (k_slots >= 0) & (k_slots <= q_slots)
    if window is not None:
        seen_BLM &= q_slots - k_slots < window
    if segments_BL is not None and segments_BM is not None:
        seen_BLM &= segments_BL[:, :, None] == segments_BM[:, None, :]
    return seen_BLM


def capped(scores: jax.Array, softcap: float | None) -> jax.Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def pad_axis(x: jax.Array, size: int, axis: int, fill: int = 0) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, constant_values=fill)


def sink_scores(sinks_KG: jax.Array, batch: int, length: int) -> jax.Array:
    """The sink of each row of queries: [N, R, 1]."""
    kv_heads, group = sinks_KG.shape
    each = jnp.broadcast_to(sinks_KG[None, :, :, None], (batch, kv_heads, group, length))
    return each.reshape(batch * kv_heads, group * length, 1)


def mean_keys(length: int, window: int | None) -> float:
    """How many keys a query sees under a causal mask, averaged over the positions of a sequence."""
    w = min(window or length, length)
    return (w * (w + 1) / 2 + (length - w) * w) / length
