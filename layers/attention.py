"""Softmax attention: multi-head (Vaswani et al. 2017), multi-query (Shazeer 2019), grouped-query (Ainslie et al.
2023), windowed.

Grouped-query attention never repeats keys and values, and a window costs what it sees: queries in blocks of one
window each look at their own block and the one before, so time and memory are linear in length.

Dimensions: B batch, L queries, M keys, S cache slots, D width, K kv_heads, G queries per kv head, E head_dim, U value
dimensions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from .cache import held_slots, new_slots
from .dense import attach, bias, project, weight
from .execution import Execution
from .norms import QKNorm
from .rope import Rope, rotate
from .spec import Context, require

AXES = {"D": "width", "K": "kv_heads", "G": "q_per_kv", "E": "head_dim", "B": "batch", "S": "length"}

HIDDEN = -1e30
"""The score of a key that must not be seen: finite, so that a query that sees none stays finite too."""

QUERY_BLOCK = 1024
"""Full attention over more queries than this goes block by block, recomputing scores in the backward pass."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """`heads` query heads in groups that share `kv_heads` heads of keys and values.

    rope: None for no position information (NoPE).  window: how many tokens a query sees, itself included; None sees
    all before it. scale: multiplies the scores, None is head_dim ** -0.5.  softcap: scores become softcap *
    tanh(scores / softcap). bias: which projections add one, letters of "qkvo"."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None = None
    window: int | None = None
    qk_norm: QKNorm | None = None
    scale: float | None = None
    softcap: float | None = None
    bias: str = ""

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
        require(self, self.softcap is None or self.softcap > 0, "softcap", "it must be positive, or None")
        require(self, set(self.bias) <= set("qkvo"), "bias", "it takes letters of 'qkvo'")

    def shell(self, execution: Execution) -> nn.Module:
        return AttentionShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        slots = length if self.window is None else min(self.window, length)
        entry = jax.ShapeDtypeStruct((batch, slots, self.kv_heads, self.head_dim), dtype)
        return {"k_BSKE": entry, "v_BSKE": entry}

    def flops(self, length: int) -> float:
        return 4 * self.heads * self.head_dim * mean_keys(length, self.window)


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


def attend(
    q_BLKGE: jax.Array,
    keys: Sequence[Keys],
    slots_L: jax.Array,
    segments_BL: jax.Array | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Causal attention of each query to the keys at or before its slot, in its document, within its window: [B, L, K,
    G, U].

    keys: the parts of one sequence, in order (what a cache holds, then the new tokens); the last part is as long as
    the queries. Scores and softmax are float32. A query with no key to see gets a finite, meaningless value."""
    length = q_BLKGE.shape[1]
    core = partial(_attend, scale=scale, window=window, softcap=softcap)
    if window is not None and length > 2 * window:
        return _in_windows(core, q_BLKGE, keys, slots_L, segments_BL, window)
    if length > QUERY_BLOCK:
        return _in_query_blocks(core, q_BLKGE, keys, slots_L, segments_BL)
    return core(q_BLKGE, keys, slots_L[None], segments_BL)


def _attend(
    q_BLKGE: jax.Array,
    keys: Sequence[Keys],
    slots_BL: jax.Array,
    segments_BL: jax.Array | None,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> jax.Array:
    def scores_BKGLM(part: Keys) -> jax.Array:
        scores = jnp.einsum("BLKGE,BMKE->BKGLM", q_BLKGE, part.k_BMKE, preferred_element_type=jnp.float32) * scale
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        q_slots, k_slots = slots_BL[:, :, None], part.slots_BM[:, None, :]
        seen_BLM = (k_slots >= 0) & (k_slots <= q_slots)
        if window is not None:
            seen_BLM &= q_slots - k_slots < window
        if segments_BL is not None and part.segments_BM is not None:
            seen_BLM &= segments_BL[:, :, None] == part.segments_BM[:, None, :]
        return jnp.where(seen_BLM[:, None, None], scores, HIDDEN)

    # A softmax whose sum divides the output, which is smaller than the weights: two passes over those less.
    scores = jnp.concatenate([scores_BKGLM(part) for part in keys], axis=-1)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total_BLKG1 = jnp.moveaxis(jnp.sum(weights, axis=-1, keepdims=True), 3, 1)
    ends = list(accumulate(part.k_BMKE.shape[1] for part in keys))
    parts = jnp.split(weights.astype(q_BLKGE.dtype), ends[:-1], axis=-1)
    out = [
        jnp.einsum("BKGLM,BMKU->BLKGU", w, part.v_BMKU, preferred_element_type=jnp.float32)
        for w, part in zip(parts, keys, strict=True)
    ]
    return (sum(out[1:], start=out[0]) / total_BLKG1).astype(q_BLKGE.dtype)


def _in_query_blocks(
    core: Callable[..., jax.Array],
    q_BLKGE: jax.Array,
    keys: Sequence[Keys],
    slots_L: jax.Array,
    segments_BL: jax.Array | None,
) -> jax.Array:
    """One block of queries at a time against all keys, so that no [length, length] array exists."""
    length = q_BLKGE.shape[1]
    count = -(-length // QUERY_BLOCK)

    def blocks(x: jax.Array, axis: int) -> jax.Array:
        padded = _pad_axis(x, count * QUERY_BLOCK, axis)
        return jnp.moveaxis(padded.reshape(*x.shape[:axis], count, QUERY_BLOCK, *x.shape[axis + 1 :]), axis, 0)

    queries = (blocks(q_BLKGE, 1), blocks(slots_L, 0), None if segments_BL is None else blocks(segments_BL, 1))
    out = jax.lax.map(jax.checkpoint(lambda block: core(block[0], keys, block[1][None], block[2])), queries)
    return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], count * QUERY_BLOCK, *out.shape[3:])[:, :length]


def _in_windows(
    core: Callable[..., jax.Array],
    q_BLKGE: jax.Array,
    keys: Sequence[Keys],
    slots_L: jax.Array,
    segments_BL: jax.Array | None,
    window: int,
) -> jax.Array:
    """Queries in blocks of one window, each against its own block of keys and the one before."""
    batch, length = q_BLKGE.shape[:2]
    count = -(-length // window)
    *before, new = keys
    if not before:  # else a ring, which holds the `window` before the first new one: in what order, its slots say
        before = [jax.tree.map(lambda x: jnp.full_like(x[:, :window], -1), new)]

    def fold(x: jax.Array) -> jax.Array:  # [B, count * window, ...] -> [B * count, window, ...]
        return x.reshape(batch * count, window, *x.shape[2:])

    def pairs(a: jax.Array, b: jax.Array) -> jax.Array:  # [B * count, 2 * window, ...]
        x = _pad_axis(jnp.concatenate([a, b], axis=1), (count + 1) * window, 1, fill=-1)
        x = jnp.broadcast_to(x, (batch, *x.shape[1:]))
        return jnp.concatenate([fold(x[:, :-window]), fold(x[:, window:])], axis=1)

    slots_BL = jnp.broadcast_to(_pad_axis(slots_L, count * window, 0), (batch, count * window))
    segments = None if segments_BL is None else fold(_pad_axis(segments_BL, count * window, 1))
    paired = jax.tree.map(pairs, before[0], new)
    out = core(fold(_pad_axis(q_BLKGE, count * window, 1)), (paired,), fold(slots_BL), segments)
    return out.reshape(batch, count * window, *out.shape[2:])[:, :length]


def _pad_axis(x: jax.Array, size: int, axis: int, fill: int = 0) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, constant_values=fill)


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
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        b = partial(bias, self, sizes=sizes, execution=self.execution)
        q_BLKGE = project("BLD,DKGE->BLKGE", x_BLD, w("wq_DKGE", inputs="D"))
        k_BLKE = project("BLD,DKE->BLKE", x_BLD, w("wk_DKE", inputs="D"))
        v_BLKE = project("BLD,DKE->BLKE", x_BLD, w("wv_DKE", inputs="D"))
        q_BLKGE = q_BLKGE + b("bq_KGE") if "q" in s.bias else q_BLKGE
        k_BLKE = k_BLKE + b("bk_KE") if "k" in s.bias else k_BLKE
        v_BLKE = v_BLKE + b("bv_KE") if "v" in s.bias else v_BLKE
        if s.qk_norm is not None:
            q_BLKGE = attach(self, s.qk_norm.shell(self.execution, "KGE"), "q_norm")(q_BLKGE)
            k_BLKE = attach(self, s.qk_norm.shell(self.execution, "KE"), "k_norm")(k_BLKE)
        if s.rope is not None:
            q_BLKGE = rotate(q_BLKGE, context.positions_BL, s.rope)
            k_BLKE = rotate(k_BLKE, context.positions_BL, s.rope)

        keys = [Keys(k_BLKE, v_BLKE, new_slots(context), context.segments_BL)]
        if cache is not None:
            k_BSKE, v_BSKE = cache["k_BSKE"].astype(q_BLKGE.dtype), cache["v_BSKE"].astype(q_BLKGE.dtype)
            keys.insert(0, Keys(k_BSKE, v_BSKE, held_slots(context, k_BSKE.shape[1])))
        scale = s.head_dim**-0.5 if s.scale is None else s.scale
        out_BLKGE = attend(
            q_BLKGE, keys, context.slots_L, context.segments_BL, scale=scale, window=s.window, softcap=s.softcap
        )
        y_BLD = project("BLKGE,KGED->BLD", out_BLKGE, w("wo_KGED", inputs="KGE"))
        y_BLD = y_BLD + b("bo_D") if "o" in s.bias else y_BLD
        kept = slice(None) if s.window is None else slice(-s.window, None)
        return y_BLD, {"k_BSKE": k_BLKE[:, kept], "v_BSKE": v_BLKE[:, kept]}, {}
