"""Softmax attention of a sequence's tokens among themselves, with its gradient.

FlashAttention's way through memory (Dao 2023) without its kernel: of the weights only each query's logsumexp is kept,
and a block of queries does not look at keys whose index says that it cannot see them.

Dimensions: as in attention.py, and N = B * K, R = G * L (products.py)."""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from .execution import KEPT
from .products import (
    HIDDEN,
    Block,
    Keys,
    Queries,
    Rule,
    SeenBy,
    by_head,
    dot,
    masked_scores,
    rows,
    sink_scores,
    unhead,
    unrows,
)

BLOCKS = 4
"""Into how many blocks of queries attention within a sequence is cut: 5/8 of all pairs are computed, not all."""

LEAST_BLOCK = 64
"""Queries a block at least: smaller products run at a fraction of their speed."""


def in_order(queries: Queries, keys: Keys, rule: Rule, before: int, sinks_KG: jax.Array | None = None) -> jax.Array:
    """`over_parts` of one part, where key `before + i` is query i's own."""
    seen_by = queries.slots_BL, queries.segments_BL, keys.slots_BM, keys.segments_BM
    return _ordered(queries.q_BLKGE, keys.k_BMKE, keys.v_BMKU, sinks_KG, seen_by, rule, before)


def blocks(length: int, window: int | None, before: int) -> list[Block]:
    size = max(LEAST_BLOCK, -(-length // BLOCKS))
    starts = range(0, length, size)
    first = [
        0 if window is None else max(0, before + start - window + 1) // LEAST_BLOCK * LEAST_BLOCK for start in starts
    ]
    ends = [min(start + size, length) for start in starts]
    return [Block(start, end, f, before + end) for start, end, f in zip(starts, ends, first, strict=True)]


def of_block(seen_by: SeenBy, block: Block) -> SeenBy:
    """The slots and segments of a block."""
    slots_BL, segments_BL, slots_BM, segments_BM = seen_by
    own, keys = slice(block.start, block.end), slice(block.first, block.last)
    segments = (
        None if segments_BL is None else segments_BL[:, own],
        None if segments_BM is None else segments_BM[:, keys],
    )
    return slots_BL[:, own], segments[0], slots_BM[:, keys], segments[1]


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _ordered(
    q_BLKGE: jax.Array,
    k_BMKE: jax.Array,
    v_BMKU: jax.Array,
    sinks_KG: jax.Array | None,
    seen_by: Any,
    rule: Rule,
    before: int,
) -> jax.Array:
    return _forward(q_BLKGE, k_BMKE, v_BMKU, sinks_KG, seen_by, rule, before)[0]


def _forward(
    q_BLKGE: jax.Array,
    k_BMKE: jax.Array,
    v_BMKU: jax.Array,
    sinks_KG: jax.Array | None,
    seen_by: Any,
    rule: Rule,
    before: int,
) -> tuple[jax.Array, Any]:
    k_NME, v_NMU = by_head(k_BMKE), by_head(v_BMKU)
    outputs, sums = [], []
    for block in blocks(q_BLKGE.shape[1], rule.window, before):
        keys = slice(block.first, block.last)
        sink_NR1 = None if sinks_KG is None else sink_scores(sinks_KG, q_BLKGE.shape[0], block.end - block.start)
        q_NRE, seen_by_block = rows(q_BLKGE, block), of_block(seen_by, block)
        out_NRU, lse_NR1 = weighed(q_NRE, k_NME[:, keys], v_NMU[:, keys], seen_by_block, rule, sink_NR1)
        outputs.append(unrows(out_NRU.astype(q_BLKGE.dtype), q_BLKGE))
        # A query that sees nothing has no gradient: exp(HIDDEN - 0) is 0.
        sums.append(jnp.where(lse_NR1 > HIDDEN, lse_NR1, 0))
    out_BLKGU, sums = checkpoint_name((jnp.concatenate(outputs, axis=1), sums), KEPT)
    return out_BLKGU, (q_BLKGE, k_BMKE, v_BMKU, sinks_KG, seen_by, out_BLKGU, sums)


def _backward(rule: Rule, before: int, saved: Any, dout_BLKGU: jax.Array) -> tuple[Any, ...]:
    q_BLKGE, k_BMKE, v_BMKU, sinks_KG, seen_by, out_BLKGU, sums = saved
    k_NME, v_NMU, dtype = by_head(k_BMKE), by_head(v_BMKU), q_BLKGE.dtype
    dq, dk, dv, dsinks = [], [], [], []
    for block, lse_NR1 in zip(blocks(q_BLKGE.shape[1], rule.window, before), sums, strict=True):
        keys = slice(block.first, block.last)
        q_NRE, out_NRU, dout_NRU = (rows(x, block) for x in (q_BLKGE, out_BLKGU, dout_BLKGU))
        mean_NR1 = jnp.sum(out_NRU.astype(jnp.float32) * dout_NRU, axis=-1, keepdims=True)
        told = Told(lse_NR1, mean_NR1, dout_NRU)
        pulled = pulled_back(q_NRE, k_NME[:, keys], v_NMU[:, keys], of_block(seen_by, block), rule, told)
        rest = ((0, 0), (block.first, k_NME.shape[1] - block.last), (0, 0))
        dq.append(unrows(pulled[0], q_BLKGE))
        dk.append(jnp.pad(pulled[1], rest))
        dv.append(jnp.pad(pulled[2], rest))
        if sinks_KG is not None:
            batch, length = q_BLKGE.shape[0], block.end - block.start
            dsink_NR1 = -jnp.exp(sink_scores(sinks_KG, batch, length) - lse_NR1) * mean_NR1
            dsinks.append(jnp.sum(dsink_NR1.reshape(batch, *sinks_KG.shape, length), axis=(0, 3)))
    dk_BMKE, dv_BMKU = (unhead(reduce(jnp.add, parts), x).astype(x.dtype) for parts, x in ((dk, k_BMKE), (dv, v_BMKU)))
    dsinks_KG = None if sinks_KG is None else reduce(jnp.add, dsinks).astype(sinks_KG.dtype)
    return jnp.concatenate(dq, axis=1).astype(dtype), dk_BMKE, dv_BMKU, dsinks_KG, None


_ordered.defvjp(_forward, _backward)


# --- one block -------------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """Of each query, what its gradient needs: its logsumexp, out . dout, and dout."""

    lse_NR1: jax.Array
    mean_NR1: jax.Array
    dout_NRU: jax.Array


def weighed(
    q_NRE: jax.Array,
    k_NME: jax.Array,
    v_NMU: jax.Array,
    seen_by: SeenBy,
    rule: Rule,
    sink_NR1: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of a block of queries to keys, and the logsumexp of its scores, both float32: [N, R, U], [N, R, 1].
    A query that sees nothing has the logsumexp HIDDEN.
    """
    scores_NRM = masked_scores(q_NRE, k_NME, seen_by, rule)
    most_NR1 = jnp.max(scores_NRM, axis=-1, keepdims=True)
    if sink_NR1 is not None:
        most_NR1 = jnp.maximum(most_NR1, sink_NR1)
    weights_NRM = jnp.exp(scores_NRM - most_NR1)
    # The sum divides the output, which is smaller than the weights.
    total_NR1 = jnp.sum(weights_NRM, axis=-1, keepdims=True)
    if sink_NR1 is not None:
        total_NR1 += jnp.exp(sink_NR1 - most_NR1)
    return dot(weights_NRM.astype(v_NMU.dtype), v_NMU, 2, 1) / total_NR1, most_NR1 + jnp.log(total_NR1)


def pulled_back(
    q_NRE: jax.Array, k_NME: jax.Array, v_NMU: jax.Array, seen_by: SeenBy, rule: Rule, told: Told
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of queries, keys and values by this block, float32."""
    scores_NRM = masked_scores(q_NRE, k_NME, seen_by, rule)
    weights_NRM = jnp.exp(scores_NRM - told.lse_NR1)
    dscores_NRM = weights_NRM * (dot(told.dout_NRU, v_NMU, 2, 2) - told.mean_NR1) * rule.scale
    if rule.softcap is not None:
        dscores_NRM *= 1 - jnp.square(jnp.maximum(scores_NRM, -rule.softcap) / rule.softcap)
    dscores_NRM = dscores_NRM.astype(q_NRE.dtype)
    dv_NMU = dot(weights_NRM.astype(q_NRE.dtype), told.dout_NRU, 1, 1)
    return dot(dscores_NRM, k_NME, 2, 1), dot(dscores_NRM, q_NRE, 1, 1), dv_NMU
