"""Softmax attention: multi-head (Vaswani et al. 2017), multi-query (Shazeer 2019), grouped-query (Ainslie et al.
2023), windowed.

Grouped-query attention never repeats keys and values, and a window costs what it sees: queries in blocks of one
window each look at their own block and the one before, so time and memory are linear in length.

Attention sinks, a score a head that takes part in the softmax and has no value: Xiao et al. 2023, in the form of
gpt-oss (OpenAI 2025). Gated outputs: Qiu et al. 2025. Windows that do not move with the query: chunked.py.

Dimensions: B batch, L queries, M keys, S cache slots, D width, K kv_heads, G queries per kv head, E head_dim, U value
dimensions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from .cache import held_slots, new_slots
from .dense import attach, bias, project, weight
from .execution import KEPT, Execution
from .norms import QKNorm
from .rope import LongRope, Rope, rotate
from .spec import Context, require
from .spread import is_spread, spread
from .temperature import Temperature, sharpen

AXES = {
    "D": "width",
    "K": "kv_heads",
    "G": "q_per_kv",
    "E": "head_dim",
    "U": "value_dim",
    "B": "batch",
    "S": "length",
}

HIDDEN = -1e30
"""The score of a key that must not be seen: finite, so that a query that sees none stays finite too."""

BLOCKS = 4
"""Into how many blocks of queries attention within a sequence is cut: 5/8 of all pairs are computed, not all."""

LEAST_BLOCK = 64
"""Queries a block at least: smaller products run at a fraction of their speed."""

FEW_ROWS = 8
"""Queries of a key head up to which XLA on CPU reads keys faster for a product each: two to four times as fast."""

QUERY_BLOCK = 1024
"""Queries a block at most: a sequence of more than BLOCKS such blocks goes one block at a time."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What becomes of the product of a query and a key before the softmax.

    scale: multiplies it, None is head_dim ** -0.5.  softcap: it becomes softcap * tanh(score / softcap).
    temperature: sharpens late queries.  sinks: each head learns the score of nothing."""

    scale: float | None = None
    softcap: float | None = None
    temperature: Temperature | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        require(self, self.softcap is None or self.softcap > 0, "softcap", "it must be positive, or None")


@dataclass(frozen=True, kw_only=True)
class Values:
    """Heads of values of `dim` dimensions, another number than keys have, times `scale` (MiMo-V2, Xiaomi 2025)."""

    dim: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(self, self.dim > 0, "dim", "it must be positive")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """`heads` query heads in groups that share `kv_heads` heads of keys and values.

    rope: None for no position information (NoPE).  window: how many tokens a query sees, itself included; None sees
    all before it. bias: which projections add one, letters of "qkvo".  values: None for such as keys.  gate: what
    attention gives is multiplied by the sigmoid of a projection of x, before the output projection."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None = None
    window: int | None = None
    qk_norm: QKNorm | None = None
    bias: str = ""
    scores: Scores = Scores()
    values: Values | None = None
    gate: bool = False

    def __post_init__(self) -> None:
        for field in ("heads", "kv_heads", "head_dim"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        divides = self.heads % self.kv_heads == 0
        require(self, divides, "heads", f"it must be a multiple of kv_heads, which is {self.kv_heads}")
        if self.rope is not None and self.rope.dim > self.head_dim:
            raise ValueError(
                f"Attention.rope.dim is {self.rope.dim}: it cannot exceed head_dim, which is {self.head_dim}"
            )
        require(self, self.window is None or self.window > 0, "window", "it must be positive, or None")
        if self.window is not None and self.rope is not None and isinstance(self.rope.scaling, LongRope):
            least = self.rope.scaling.original_length  # a ring of no more slots would not tell how long a text may be
            require(self, self.window > least, "window", f"beside LongRope it must exceed original_length, {least}")
        require(self, set(self.bias) <= set("qkvo"), "bias", "it takes letters of 'qkvo'")

    def shell(self, execution: Execution) -> nn.Module:
        return AttentionShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        slots = length if self.window is None else min(self.window, length)
        # Heads first: the products of decoding then read them as they lie.
        entry = jax.ShapeDtypeStruct((batch, self.kv_heads, slots, self.head_dim), dtype)
        if self.values is None:
            return {"k_BKSE": entry, "v_BKSE": entry}
        return {"k_BKSE": entry, "v_BKSU": jax.ShapeDtypeStruct((*entry.shape[:3], self.values.dim), dtype)}

    def flops(self, length: int) -> float:
        dims = self.head_dim + (self.head_dim if self.values is None else self.values.dim)
        return 2 * self.heads * dims * self.mean_keys(length)

    def mean_keys(self, length: int) -> float:
        return mean_keys(length, self.window)

    def parts(self, positions_BL: jax.Array, segments_BL: jax.Array | None) -> jax.Array | None:
        """The part of its row that a token is in: a query sees keys of its own. None if a row is one part."""
        return segments_BL


def mean_keys(length: int, window: int | None) -> float:
    """How many keys a query sees under a causal mask, averaged over the positions of a sequence."""
    w = min(window or length, length)
    return (w * (w + 1) / 2 + (length - w) * w) / length


# --- the core --------------------------------------------------------------------------------------------------------


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
        return _in_windows(queries, keys, rule, window, sinks_KG)
    if length > BLOCKS * QUERY_BLOCK:
        return _in_query_blocks(queries, keys, rule, sinks_KG)
    if len(keys) == 1:
        return _in_order(queries, keys[0], rule, 0, sinks_KG)
    return _over_parts(queries, keys, rule, sinks_KG)


def _spread(queries: Queries, keys: Keys, rule: Rule, sinks_KG: jax.Array | None, execution: Execution) -> jax.Array:
    """`attend` by each device of its own rows, heads, and queries: keys and values of the whole length go to all that
    share a sequence.
    """
    rules = execution.rules
    assert rules is not None
    batch, length, _, group, _ = queries.q_BLKGE.shape
    here = replace(execution, rules=None)
    k_BMKE, v_BMKU, slots_BM, segments_BM = keys
    slots_BM = jnp.broadcast_to(slots_BM, (batch, length))

    def own(q: Any, slots: Any, segments: Any, k: Any, v: Any, key_slots: Any, key_segments: Any, sinks: Any) -> Any:
        its_keys = [Keys(k, v, key_slots, key_segments)]
        if q.shape[1] == length:
            given: dict[str, Any] = {"scale": rule.scale, "window": rule.window, "softcap": rule.softcap}
            return attend(q, its_keys, slots, segments, **given, sinks_KG=sinks, execution=here)
        some = _in_query_blocks if q.shape[1] > QUERY_BLOCK else jax.checkpoint(_over_parts, static_argnums=2)
        return some(Queries(q, slots, segments), its_keys, rule, sinks)

    heads = "kv_heads" if group > 1 else "heads"
    q_axes, k_axes = ("batch", "length", heads, "q_per_kv"), ("batch", None, heads)
    row, whole_row = ("batch", "length"), ("batch", None)
    arrays = (*queries, k_BMKE, v_BMKU, slots_BM, segments_BM, sinks_KG)
    axes = (q_axes, row, row, k_axes, k_axes, whole_row, whole_row, (heads, "q_per_kv"))
    return spread(own, rules, arrays, axes, q_axes)


def _over_parts(queries: Queries, keys: Sequence[Keys], rule: Rule, sinks_KG: jax.Array | None = None) -> jax.Array:
    """One softmax over several parts of keys."""
    q_BLKGE, dtype = queries.q_BLKGE, queries.q_BLKGE.dtype
    q_NRE = _rows(q_BLKGE)
    scores = [
        _scores(q_NRE, _heads(k_BMKE), (queries.slots_BL, queries.segments_BL, slots_BM, segments_BM), rule)
        for k_BMKE, _, slots_BM, segments_BM in keys
    ]
    if sinks_KG is not None:
        scores.append(_sink_scores(sinks_KG, q_BLKGE.shape[0], q_BLKGE.shape[1]))
    most_NR1 = reduce(jnp.maximum, (jnp.max(s, axis=-1, keepdims=True) for s in scores))
    weights = [jnp.exp(s - most_NR1) for s in scores]
    # The sum divides the output, which is smaller than the weights: two passes over those less.
    total_NR1 = reduce(jnp.add, (jnp.sum(w, axis=-1, keepdims=True) for w in weights))
    # A sink, which comes last, has no value.
    outputs = [_dot(w.astype(dtype), _heads(part.v_BMKU), 2, 1) for w, part in zip(weights, keys, strict=False)]
    return _unrows((reduce(jnp.add, outputs) / total_NR1).astype(dtype), q_BLKGE)


def _sink_scores(sinks_KG: jax.Array, batch: int, length: int) -> jax.Array:
    """The sink of each row of queries: [N, R, 1]."""
    kv_heads, group = sinks_KG.shape
    each = jnp.broadcast_to(sinks_KG[None, :, :, None], (batch, kv_heads, group, length))
    return each.reshape(batch * kv_heads, group * length, 1)


def _in_query_blocks(
    queries: Queries, keys: Sequence[Keys], rule: Rule, sinks_KG: jax.Array | None = None
) -> jax.Array:
    """One block of queries at a time against all keys, so that no [length, length] array exists."""
    length = queries.q_BLKGE.shape[1]
    count = -(-length // QUERY_BLOCK)

    def blocks(x_BL: jax.Array) -> jax.Array:  # [B, L, ...] -> [count, B, QUERY_BLOCK, ...]
        padded = _pad_axis(x_BL, count * QUERY_BLOCK, 1)
        return jnp.moveaxis(padded.reshape(x_BL.shape[0], count, QUERY_BLOCK, *x_BL.shape[2:]), 1, 0)

    attended = jax.checkpoint(lambda block: _over_parts(block, keys, rule, sinks_KG))
    out = jax.lax.map(attended, jax.tree.map(blocks, queries))
    return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], count * QUERY_BLOCK, *out.shape[3:])[:, :length]


def _in_windows(
    queries: Queries, keys: Sequence[Keys], rule: Rule, window: int, sinks_KG: jax.Array | None = None
) -> jax.Array:
    """Queries in blocks of one window, each against its own block of keys and the one before."""
    batch, length = queries.q_BLKGE.shape[:2]
    count = -(-length // window)
    *before, new = keys
    if not before:  # else a ring, which holds the `window` before the first new one: in what order, its slots say
        before = [jax.tree.map(lambda x: jnp.full_like(x[:, :window], -1), new)]

    def fold(x: jax.Array) -> jax.Array:  # [B, L, ...] -> [B * count, window, ...]
        x = jnp.broadcast_to(_pad_axis(x, count * window, 1), (batch, count * window, *x.shape[2:]))
        return x.reshape(batch * count, window, *x.shape[2:])

    def pairs(a: jax.Array, b: jax.Array) -> jax.Array:  # [B * count, 2 * window, ...]
        x = _pad_axis(jnp.concatenate([a, b], axis=1), (count + 1) * window, 1, fill=-1)
        return jnp.concatenate([fold(x[:, :-window]), fold(x[:, window:])], axis=1)

    folded, paired = jax.tree.map(fold, queries), jax.tree.map(pairs, before[0], new)
    if len(keys) == 1:
        out = _in_order(folded, paired, rule, window, sinks_KG)
    else:
        out = _over_parts(folded, [paired], rule, sinks_KG)
    return out.reshape(batch, count * window, *out.shape[2:])[:, :length]


# --- products --------------------------------------------------------------------------------------------------------

# They are batched over N = B * K and have the queries of a group as rows, R = G * L: forms that XLA runs without
# transposing scores.

SeenBy = tuple[jax.Array, jax.Array | None, jax.Array, jax.Array | None]
"""Slots and segments of queries and of keys: slots_BL, segments_BL, slots_BM, segments_BM."""


class _Block(NamedTuple):
    """Queries [start, end) and the keys [first, last) that hold all they see."""

    start: int
    end: int
    first: int
    last: int


def _rows(x_BLKGE: jax.Array, block: _Block | None = None) -> jax.Array:
    """The queries of a block, or all, or what belongs to them: [B, L, K, G, E] -> [N, R, E]."""
    batch, _, kv_heads, _, dim = x_BLKGE.shape
    x = x_BLKGE if block is None else x_BLKGE[:, block.start : block.end]
    return x.transpose(0, 2, 3, 1, 4).reshape(batch * kv_heads, -1, dim)


def _unrows(x_NRE: jax.Array, like_BLKGE: jax.Array) -> jax.Array:
    batch, _, kv_heads, group, _ = like_BLKGE.shape
    return x_NRE.reshape(batch, kv_heads, group, -1, x_NRE.shape[-1]).transpose(0, 3, 1, 2, 4)


def _heads(x_BMKE: jax.Array) -> jax.Array:
    """[B, M, K, E] -> [N, M, E]."""
    batch, length, kv_heads, dim = x_BMKE.shape
    return x_BMKE.transpose(0, 2, 1, 3).reshape(batch * kv_heads, length, dim)


def _dot(x_N: jax.Array, y_N: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """A batch of products that sum over these axes, float32."""
    return jax.lax.dot_general(x_N, y_N, (((x_axis,), (y_axis,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def _scores(q_NRE: jax.Array, k_NME: jax.Array, seen_by: SeenBy, rule: Rule) -> jax.Array:
    """Masked scores [N, R, M]."""
    seen_BLM = _seen(seen_by, rule.window)
    few = q_NRE.shape[1] <= rule.by_row
    rows = jnp.split(q_NRE, q_NRE.shape[1], axis=1) if few else [q_NRE]
    scores_NRM = jnp.concatenate([_dot(q_NrE, k_NME, 2, 2) for q_NrE in rows], axis=1)
    scores_NRM = _capped(scores_NRM * rule.scale, rule.softcap)
    batch, length, keys = seen_BLM.shape
    scores = scores_NRM.reshape(batch, -1, length, keys)
    return jnp.where(seen_BLM[:, None], scores, HIDDEN).reshape(scores_NRM.shape)


def _seen(seen_by: SeenBy, window: int | None) -> jax.Array:
    """bool [B, L, M]: which keys a query sees."""
    slots_BL, segments_BL, slots_BM, segments_BM = seen_by
    q_slots, k_slots = slots_BL[:, :, None], slots_BM[:, None, :]
    seen_BLM = (k_slots >= 0) & (k_slots <= q_slots)
    if window is not None:
        seen_BLM &= q_slots - k_slots < window
    if segments_BL is not None and segments_BM is not None:
        seen_BLM &= segments_BL[:, :, None] == segments_BM[:, None, :]
    return seen_BLM


def _capped(scores: jax.Array, softcap: float | None) -> jax.Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _pad_axis(x: jax.Array, size: int, axis: int, fill: int = 0) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, constant_values=fill)


# --- attention within a sequence, with its gradient ------------------------------------------------------------------

# FlashAttention's way through memory (Dao 2023) without its kernel: of the weights only each query's logsumexp is
# kept, and a block of queries does not look at keys whose index says that it cannot see them.


def _in_order(queries: Queries, keys: Keys, rule: Rule, before: int, sinks_KG: jax.Array | None = None) -> jax.Array:
    """`_over_parts` of one part, where key `before + i` is query i's own."""
    seen_by = queries.slots_BL, queries.segments_BL, keys.slots_BM, keys.segments_BM
    return _ordered(queries.q_BLKGE, keys.k_BMKE, keys.v_BMKU, sinks_KG, seen_by, rule, before)


def _blocks(length: int, window: int | None, before: int) -> list[_Block]:
    size = max(LEAST_BLOCK, -(-length // BLOCKS))
    starts = range(0, length, size)
    first = [
        0 if window is None else max(0, before + start - window + 1) // LEAST_BLOCK * LEAST_BLOCK for start in starts
    ]
    ends = [min(start + size, length) for start in starts]
    return [_Block(start, end, f, before + end) for start, end, f in zip(starts, ends, first, strict=True)]


def _of(seen_by: SeenBy, block: _Block) -> SeenBy:
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
    k_NME, v_NMU = _heads(k_BMKE), _heads(v_BMKU)
    outputs, sums = [], []
    for block in _blocks(q_BLKGE.shape[1], rule.window, before):
        keys = slice(block.first, block.last)
        scores_NRM = _scores(_rows(q_BLKGE, block), k_NME[:, keys], _of(seen_by, block), rule)
        most_NR1 = jnp.max(scores_NRM, axis=-1, keepdims=True)
        if sinks_KG is not None:
            sink_NR1 = _sink_scores(sinks_KG, q_BLKGE.shape[0], block.end - block.start)
            most_NR1 = jnp.maximum(most_NR1, sink_NR1)
        weights_NRM = jnp.exp(scores_NRM - most_NR1)
        # The sum divides the output, which is smaller than the weights.
        total_NR1 = jnp.sum(weights_NRM, axis=-1, keepdims=True)
        if sinks_KG is not None:
            total_NR1 += jnp.exp(sink_NR1 - most_NR1)
        out_NRU = _dot(weights_NRM.astype(v_NMU.dtype), v_NMU[:, keys], 2, 1) / total_NR1
        outputs.append(_unrows(out_NRU.astype(q_BLKGE.dtype), q_BLKGE))
        # A query that sees nothing has no gradient: exp(HIDDEN - 0) is 0.
        sums.append(jnp.where(most_NR1 > HIDDEN, most_NR1 + jnp.log(total_NR1), 0))
    out_BLKGU, sums = checkpoint_name((jnp.concatenate(outputs, axis=1), sums), KEPT)
    return out_BLKGU, (q_BLKGE, k_BMKE, v_BMKU, sinks_KG, seen_by, out_BLKGU, sums)


def _backward(rule: Rule, before: int, saved: Any, dout_BLKGU: jax.Array) -> tuple[Any, ...]:
    q_BLKGE, k_BMKE, v_BMKU, sinks_KG, seen_by, out_BLKGU, sums = saved
    k_NME, v_NMU, dtype = _heads(k_BMKE), _heads(v_BMKU), q_BLKGE.dtype
    dq, dk, dv, dsinks = [], [], [], []
    for block, lse_NR1 in zip(_blocks(q_BLKGE.shape[1], rule.window, before), sums, strict=True):
        keys = slice(block.first, block.last)
        q_NRE, out_NRU, dout_NRU = (_rows(x, block) for x in (q_BLKGE, out_BLKGU, dout_BLKGU))
        scores_NRM = _scores(q_NRE, k_NME[:, keys], _of(seen_by, block), rule)
        weights_NRM = jnp.exp(scores_NRM - lse_NR1)
        mean_NR1 = jnp.sum(out_NRU.astype(jnp.float32) * dout_NRU, axis=-1, keepdims=True)
        dscores_NRM = weights_NRM * (_dot(dout_NRU, v_NMU[:, keys], 2, 2) - mean_NR1) * rule.scale
        if rule.softcap is not None:
            dscores_NRM *= 1 - jnp.square(jnp.maximum(scores_NRM, -rule.softcap) / rule.softcap)
        dscores_NRM = dscores_NRM.astype(dtype)
        dq.append(_unrows(_dot(dscores_NRM, k_NME[:, keys], 2, 1), q_BLKGE))
        rest = ((0, 0), (block.first, k_NME.shape[1] - block.last), (0, 0))
        dk.append(jnp.pad(_dot(dscores_NRM, q_NRE, 1, 1), rest))
        dv.append(jnp.pad(_dot(weights_NRM.astype(dtype), dout_NRU, 1, 1), rest))
        if sinks_KG is not None:
            batch, length = q_BLKGE.shape[0], block.end - block.start
            dsink_NR1 = -jnp.exp(_sink_scores(sinks_KG, batch, length) - lse_NR1) * mean_NR1
            dsinks.append(jnp.sum(dsink_NR1.reshape(batch, *sinks_KG.shape, length), axis=(0, 3)))
    dk_BMKE, dv_BMKU = (
        jnp.moveaxis(reduce(jnp.add, parts).reshape(x.shape[0], x.shape[2], x.shape[1], -1), 1, 2).astype(x.dtype)
        for parts, x in ((dk, k_BMKE), (dv, v_BMKU))
    )
    dsinks_KG = None if sinks_KG is None else reduce(jnp.add, dsinks).astype(sinks_KG.dtype)
    return jnp.concatenate(dq, axis=1).astype(dtype), dk_BMKE, dv_BMKU, dsinks_KG, None


_ordered.defvjp(_forward, _backward)


# --- the shell -------------------------------------------------------------------------------------------------------


class AttentionShell(nn.Module):
    spec: Attention
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "K": s.kv_heads, "G": s.heads // s.kv_heads, "E": s.head_dim}
        sizes["U"] = s.head_dim if s.values is None else s.values.dim
        v_axis = "E" if s.values is None else "U"  # a value's own dimensions have a letter only where they differ
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        b = partial(bias, self, sizes=sizes, execution=self.execution)
        q_BLKGE = project("BLD,DKGE->BLKGE", x_BLD, w("wq_DKGE", inputs="D"))
        k_BLKE = project("BLD,DKE->BLKE", x_BLD, w("wk_DKE", inputs="D"))
        v_BLKU = project("BLD,DKU->BLKU", x_BLD, w(f"wv_DK{v_axis}", inputs="D"))
        q_BLKGE = q_BLKGE + b("bq_KGE") if "q" in s.bias else q_BLKGE
        k_BLKE = k_BLKE + b("bk_KE") if "k" in s.bias else k_BLKE
        v_BLKU = v_BLKU + b(f"bv_K{v_axis}") if "v" in s.bias else v_BLKU
        v_BLKU = v_BLKU if s.values is None else v_BLKU * s.values.scale
        if s.qk_norm is not None and not s.qk_norm.after_rope:
            q_BLKGE = attach(self, s.qk_norm.shell(self.execution, "KGE"), "q_norm")(q_BLKGE)
            k_BLKE = attach(self, s.qk_norm.shell(self.execution, "KE"), "k_norm")(k_BLKE)
        if s.rope is not None:
            q_BLKGE = rotate(q_BLKGE, context.positions_BL, s.rope, context.room)
            k_BLKE = rotate(k_BLKE, context.positions_BL, s.rope, context.room)
        if s.qk_norm is not None and s.qk_norm.after_rope:
            q_BLKGE = attach(self, s.qk_norm.shell(self.execution, "KGE"), "q_norm")(q_BLKGE)
            k_BLKE = attach(self, s.qk_norm.shell(self.execution, "KE"), "k_norm")(k_BLKE)
        if s.scores.temperature is not None:
            q_BLKGE = sharpen(q_BLKGE, context.positions_BL, s.scores.temperature)

        segments_BL = s.parts(context.positions_BL, context.segments_BL)
        keys = [Keys(k_BLKE, v_BLKU, new_slots(context), segments_BL)]
        if cache is not None:
            entries = cache["k_BKSE"], cache[f"v_BKS{v_axis}"]
            k_BSKE, v_BSKU = (jnp.swapaxes(entry, 1, 2).astype(q_BLKGE.dtype) for entry in entries)
            held_BS, pad_B = held_slots(context, k_BSKE.shape[1]), context.pad_B
            held_parts_BS = None if pad_B is None else s.parts(held_BS - pad_B[:, None], None)
            keys.insert(0, Keys(k_BSKE, v_BSKU, held_BS, held_parts_BS))
        sinks_KG = None
        if s.scores.sinks:
            shape = sizes["K"], sizes["G"]
            sinks_KG = self.param("sinks_KG", nn.initializers.zeros, shape, jnp.float32).astype(jnp.float32)
        out_BLKGU = attend(
            q_BLKGE,
            keys,
            context.slots_L,
            segments_BL,
            scale=s.head_dim**-0.5 if s.scores.scale is None else s.scores.scale,
            window=s.window,
            softcap=s.scores.softcap,
            sinks_KG=sinks_KG,
            execution=self.execution,
        )
        if s.gate:
            gate_BLKGU = project("BLD,DKGU->BLKGU", x_BLD, w(f"wg_DKG{v_axis}", inputs="D"))
            out_BLKGU = out_BLKGU * jax.nn.sigmoid(gate_BLKGU)
        y_BLD = project("BLKGU,KGUD->BLD", out_BLKGU, w(f"wo_KG{v_axis}D", inputs=f"KG{v_axis}"))
        y_BLD = y_BLD + b("bo_D") if "o" in s.bias else y_BLD
        kept = slice(None) if s.window is None else slice(-s.window, None)
        new_entries = {"k_BKSE": k_BLKE, f"v_BKS{v_axis}": v_BLKU}
        new_entries = {name: jnp.swapaxes(entry[:, kept], 1, 2) for name, entry in new_entries.items()}
        return y_BLD, new_entries, {}
