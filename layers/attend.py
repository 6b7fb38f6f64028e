"""Attention of queries to keys, each way that there is to compute it: on one device or by parts on many, whole or in
blocks, in windows, over a cache and the new tokens.

Dimensions: as in attention.py, and N = B * K, R = G * L (products.py)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from .execution import Execution
from .ordered import BLOCKS, in_order
from .products import Keys, Queries, Rule, by_head, dot, masked_scores, pad_axis, rows, sink_scores, unrows
from .ring import Held, around, neighbours
from .spread import Line, is_spread, line, spread, to_heads

FEW_ROWS = 8
"""Queries of a key head up to which XLA on CPU reads keys faster for a product each: two to four times as fast."""

QUERY_BLOCK = 1024
"""Queries a block at most: a sequence of more than BLOCKS such blocks goes one block at a time."""


def attend(
    q_BLKGE: jax.Array,
    keys: Sequence[Keys],
    slots_L: jax.Array,
    segments_BL: jax.Array | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_KG: jax.Array | None = None,
    execution: Execution | None = None,
) -> jax.Array:
    """Causal attention of each query to the keys at or before its slot, in its document, within its window: [B, L, K,
    G, U].

    keys: the parts of one sequence, in order (what a cache holds, then the new tokens); the last part is as long as
    the queries. sinks_KG: float32, of each head the score of a key without a value. execution: on its target gpu, the
    tokens of a sequence among themselves go through a kernel, which knows no sinks. Scores and softmax are float32. A
    query with no key to see gets a finite, meaningless value."""
    batch, length = q_BLKGE.shape[:2]
    if execution is not None and len(keys) == 1 and is_spread(execution.rules):
        queries = Queries(q_BLKGE, jnp.broadcast_to(slots_L, (batch, length)), segments_BL)
        return _spread(queries, keys[0], Rule(scale, window, softcap), sinks_KG, execution)
    if execution is not None and execution.target == "gpu" and len(keys) == 1 and sinks_KG is None:
        from .attention_gpu import flash_attention  # Pallas is slow to import, and of no use elsewhere

        flash = partial(flash_attention, scale=scale, window=window, softcap=softcap, rules=execution.rules)
        return flash(q_BLKGE, keys[0].k_BMKE, keys[0].v_BMKU, keys[0].slots_BM, segments_BL)
    on_cpu = execution is None or execution.target in ("auto", "cpu")
    rule = Rule(scale, window, softcap, FEW_ROWS if on_cpu else 0)
    queries = Queries(q_BLKGE, jnp.broadcast_to(slots_L, (batch, length)), segments_BL)
    if window is not None and length > 2 * window:
        return in_windows(queries, keys, rule, window, sinks_KG)
    if length > BLOCKS * QUERY_BLOCK:
        return in_query_blocks(queries, keys, rule, sinks_KG)
    if len(keys) == 1:
        return in_order(queries, keys[0], rule, 0, sinks_KG)
    return over_parts(queries, keys, rule, sinks_KG)


def _spread(queries: Queries, keys: Keys, rule: Rule, sinks_KG: jax.Array | None, execution: Execution) -> jax.Array:
    """`attend` by each device of its own rows, heads, and queries."""
    rules = execution.rules
    assert rules is not None
    batch, length, _, group, _ = queries.q_BLKGE.shape
    here, shared = replace(execution, rules=None), line(rules, length)
    k_BMKE, v_BMKU, slots_BM, segments_BM = keys
    slots_BM = jnp.broadcast_to(slots_BM, (batch, length))

    def own(q: Any, slots: Any, segments: Any, k: Any, v: Any, key_slots: Any, key_segments: Any, sinks: Any) -> Any:
        its_keys = Keys(k, v, key_slots, key_segments)
        if shared is None:
            given: dict[str, Any] = {"scale": rule.scale, "window": rule.window, "softcap": rule.softcap}
            return attend(q, [its_keys], slots, segments, **given, sinks_KG=sinks, execution=here)
        its_queries = Queries(q, slots, segments)
        if rule.window is not None and rule.window - 1 <= (shared.devices - 1) * q.shape[1] // 2:
            return _after_neighbours(its_queries, its_keys, rule, rule.window, shared, sinks, here)
        if to_heads(rules, shared, k.shape[2]):
            return _by_heads(its_queries, its_keys, rule, shared, sinks, here)
        return around(its_queries, Held((k, v), key_slots, key_segments), shared, rule, None, (), sinks, here.target)

    heads = "kv_heads" if group > 1 else "heads"
    q_axes, k_axes, row = ("batch", "length", heads, "q_per_kv"), ("batch", "length", heads), ("batch", "length")
    arrays = (*queries, k_BMKE, v_BMKU, slots_BM, segments_BM, sinks_KG)
    axes = (q_axes, row, row, k_axes, k_axes, row, row, (heads, "q_per_kv"))
    return spread(own, rules, arrays, axes, q_axes)


def _after_neighbours(
    queries: Queries,
    keys: Keys,
    rule: Rule,
    window: int,
    shared: Line,
    sinks_KG: jax.Array | None,
    execution: Execution,
) -> jax.Array:
    """Attention in a window to what the devices before hold of it, and to this device's own keys."""
    length, reach = queries.q_BLKGE.shape[1], window - 1
    before = neighbours(keys, reach, shared) if reach else jax.tree.map(lambda x: x[:, :0], keys)
    all_keys = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), before, keys)
    if execution.target == "gpu" and sinks_KG is None:
        from .attention_gpu import flash_attention

        # The kernel knows as many queries as keys: those before are nobody's.
        q = jnp.pad(queries.q_BLKGE, ((0, 0), (reach, 0), (0, 0), (0, 0), (0, 0)))
        flash = partial(flash_attention, scale=rule.scale, window=window, softcap=rule.softcap)
        return flash(q, *all_keys)[:, reach:]
    if length > 2 * window:
        before = jax.tree.map(
            lambda x: jnp.pad(x, ((0, 0), (1, 0)) + ((0, 0),) * (x.ndim - 2), constant_values=-1), before
        )
        return in_windows(queries, [before, keys], rule, window, sinks_KG, in_row=True)
    if length > BLOCKS * QUERY_BLOCK:
        return in_query_blocks(queries, [all_keys], rule, sinks_KG)
    return in_order(queries, all_keys, rule, reach, sinks_KG)


def _by_heads(
    queries: Queries, keys: Keys, rule: Rule, shared: Line, sinks_KG: jax.Array | None, execution: Execution
) -> jax.Array:
    """DeepSpeed-Ulysses (Jacobs et al. 2023): devices change part of the sequence for part of the heads, of which each
    attends in the whole, and back.
    """

    def exchanged(x: jax.Array, split: int, joined: int) -> jax.Array:
        out: jax.Array = jax.lax.all_to_all(x, shared.axes, split, joined, tiled=True)
        return out

    q_BLKGE, k_BMKE, v_BMKU = (exchanged(x, 2, 1) for x in (queries.q_BLKGE, keys.k_BMKE, keys.v_BMKU))
    (slots, segments), marks = jax.tree.map(
        partial(jax.lax.all_gather, axis_name=shared.axes, axis=1, tiled=True), (queries[1:], keys[2:])
    )
    if sinks_KG is not None:
        own = sinks_KG.shape[0] // shared.devices
        sinks_KG = jax.lax.dynamic_slice_in_dim(sinks_KG, jax.lax.axis_index(shared.axes) * own, own)
    given: dict[str, Any] = {"scale": rule.scale, "window": rule.window, "softcap": rule.softcap}
    its_keys = [Keys(k_BMKE, v_BMKU, *marks)]
    out = attend(q_BLKGE, its_keys, slots, segments, **given, sinks_KG=sinks_KG, execution=execution)
    return exchanged(out, 1, 2)


def over_parts(queries: Queries, keys: Sequence[Keys], rule: Rule, sinks_KG: jax.Array | None = None) -> jax.Array:
    """One softmax over several parts of keys."""
    q_BLKGE, dtype = queries.q_BLKGE, queries.q_BLKGE.dtype
    q_NRE = rows(q_BLKGE)
    scores = [
        masked_scores(q_NRE, by_head(k_BMKE), (queries.slots_BL, queries.segments_BL, slots_BM, segments_BM), rule)
        for k_BMKE, _, slots_BM, segments_BM in keys
    ]
    if sinks_KG is not None:
        scores.append(sink_scores(sinks_KG, q_BLKGE.shape[0], q_BLKGE.shape[1]))
    most_NR1 = reduce(jnp.maximum, (jnp.max(s, axis=-1, keepdims=True) for s in scores))
    weights = [jnp.exp(s - most_NR1) for s in scores]
    # The sum divides the output, which is smaller than the weights: two passes over those less.
    total_NR1 = reduce(jnp.add, (jnp.sum(w, axis=-1, keepdims=True) for w in weights))
    # A sink, which comes last, has no value.
    outputs = [dot(w.astype(dtype), by_head(part.v_BMKU), 2, 1) for w, part in zip(weights, keys, strict=False)]
    return unrows((reduce(jnp.add, outputs) / total_NR1).astype(dtype), q_BLKGE)


def in_query_blocks(queries: Queries, keys: Sequence[Keys], rule: Rule, sinks_KG: jax.Array | None = None) -> jax.Array:
    """One block of queries at a time against all keys, so that no [length, length] array exists."""
    length = queries.q_BLKGE.shape[1]
    count = -(-length // QUERY_BLOCK)

    def blocks(x_BL: jax.Array) -> jax.Array:  # [B, L, ...] -> [count, B, QUERY_BLOCK, ...]
        padded = pad_axis(x_BL, count * QUERY_BLOCK, 1)
        return jnp.moveaxis(padded.reshape(x_BL.shape[0], count, QUERY_BLOCK, *x_BL.shape[2:]), 1, 0)

    attended = jax.checkpoint(lambda block: over_parts(block, keys, rule, sinks_KG))
    out = jax.lax.map(attended, jax.tree.map(blocks, queries))
    return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], count * QUERY_BLOCK, *out.shape[3:])[:, :length]


def in_windows(
    queries: Queries,
    keys: Sequence[Keys],
    rule: Rule,
    window: int,
    sinks_KG: jax.Array | None = None,
    in_row: bool = False,
) -> jax.Array:
    """Queries in blocks of one window, each against its own block of keys and the one before.

    in_row: the keys before are in order, as they are not in a ring."""
    batch, length = queries.q_BLKGE.shape[:2]
    count = -(-length // window)
    *before, new = keys
    if not before:  # else a ring, which holds the `window` before the first new one: in what order, its slots say
        before = [jax.tree.map(lambda x: jnp.full_like(x[:, :window], -1), new)]

    def fold(x: jax.Array) -> jax.Array:  # [B, L, ...] -> [B * count, window, ...]
        x = jnp.broadcast_to(pad_axis(x, count * window, 1), (batch, count * window, *x.shape[2:]))
        return x.reshape(batch * count, window, *x.shape[2:])

    def pairs(a: jax.Array, b: jax.Array) -> jax.Array:  # [B * count, 2 * window, ...]
        x = pad_axis(jnp.concatenate([a, b], axis=1), (count + 1) * window, 1, fill=-1)
        return jnp.concatenate([fold(x[:, :-window]), fold(x[:, window:])], axis=1)

    folded, paired = jax.tree.map(fold, queries), jax.tree.map(pairs, before[0], new)
    if len(keys) == 1 or in_row:
        out = in_order(folded, paired, rule, window, sinks_KG)
    else:
        out = over_parts(folded, [paired], rule, sinks_KG)
    return out.reshape(batch, count * window, *out.shape[2:])[:, :length]
