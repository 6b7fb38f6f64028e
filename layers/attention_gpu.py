"""Flash attention as Pallas-Triton kernels for GPUs: FlashAttention-2 (Dao 2023), algorithms 1 and 2.

A block of queries walks over the blocks of keys it may see with a running softmax, so that scores live in registers
and no [length, length] array exists, forward or backward. The backward pass recomputes them from the saved logsumexp:
one kernel walks over queries for the gradients of keys and values, one over keys for that of queries, so nothing is
added to memory twice and the bits are the same each time. Blocks outside the causal range or the window are not
visited. Head sizes need not be powers of two, nor equal: 192 is multiplied as 128 + 64 (Triton's tensors are powers
of two).

Dimensions: B batch, L queries, M keys (as many), K kv_heads, G queries per kv head, H = K * G heads, E head_dim, U
value dimensions, Q and R the rows of a block of queries and of keys. Scores are in units of log2."""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec

from ..sharding.rules import Rules, free
from .execution import KEPT
from .products import HIDDEN, Keys, Queries, Rule

LOG2E = math.log2(math.e)
SMALLEST, LARGEST = 16, 128
"""Rows a block may have: a tensor core's least, and what the registers of 8 warps hold."""

NO_KEY, NO_QUERY = -(2**31), -(2**31) + 1
"""Documents of padding: equal to no document, and not to each other."""


class Inputs(NamedTuple):
    """Queries, keys and values, and the document of each as a query and as a key."""

    q_BLHE: Any
    k_BLKE: Any
    v_BLKU: Any
    documents_BL: Any
    key_documents_BL: Any


class Form(NamedTuple):
    """What the kernels are compiled for.

    in_order: key i is query i's own, and what comes later is hidden; else documents alone hide keys.  exact: they give
    float32, whatever they take."""

    scale: float
    window: int | None
    softcap: float | None
    interpret: bool
    in_order: bool = True
    exact: bool = False


def flash_attention(
    q_BLKGE: jax.Array,
    k_BLKE: jax.Array,
    v_BLKU: jax.Array,
    slots_BL: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    rules: Rules | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attend.attend` where the keys are those of the queries' own tokens: [B, L, K, G, U], in q's dtype.

    slots_BL: int32 [B or 1, L], negative for keys that are padding, None for none. segments_BL: int32, packed
    documents. rules: how batch and heads are spread over the mesh in force (`jax.set_mesh`); without them every device
    computes everything, as the partitioner cannot look into a kernel. interpret: run the kernels as plain JAX, on any
    platform and slowly, to test them. Products are summed, and the softmax is taken, in float32. A query with no key
    to see gets zeros."""
    batch, length = q_BLKGE.shape[:2]
    documents_BL = jnp.zeros((batch, length), jnp.int32) if segments_BL is None else segments_BL
    key_documents_BL = documents_BL if slots_BL is None else jnp.where(slots_BL < 0, NO_KEY, documents_BL)
    inputs = _inputs(q_BLKGE, k_BLKE, v_BLKU, documents_BL, key_documents_BL)
    out_BLHU = _spread(partial(_flash, form=Form(scale, window, softcap, interpret)), inputs, rules)
    return _grouped(out_BLHU, q_BLKGE, v_BLKU.shape[-1])


def met(
    queries: Queries, keys: Keys, rule: Rule, in_order: bool, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Attention of queries to as many keys, [B, L, K, G, U], and the logsumexp of the scores, [B, L, K, G, 1], HIDDEN
    for a query that sees none; both float32. For a ring (ring.py): a rule with a window is not for these kernels.

    in_order: key i is query i's own, and later ones are hidden; else slots hide nothing but -1."""
    out_BLHU, lse_BHL = _met(_of_ring(queries, keys), _form(rule, in_order, interpret))
    lse_BLH1 = jnp.where(lse_BHL > HIDDEN, lse_BHL / LOG2E, HIDDEN).transpose(0, 2, 1)[..., None]
    width = keys.v_BMKU.shape[-1]
    return _grouped(out_BLHU, queries.q_BLKGE, width), _grouped(lse_BLH1, queries.q_BLKGE, 1)


def met_back(
    queries: Queries,
    told: tuple[jax.Array, jax.Array, jax.Array],
    keys: Keys,
    rule: Rule,
    in_order: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What this block gives to the gradients of queries, keys and values, float32.

    told: of each query the logsumexp of all its scores, out . dout, and dout."""
    inputs = _of_ring(queries, keys)
    length = inputs.q_BLHE.shape[1]
    lse, delta, dout_BLHU = (_padded(x.reshape(*x.shape[:2], -1, x.shape[-1]), length) for x in told)
    lse_BHL, delta_BHL = (x[..., 0].transpose(0, 2, 1) for x in (lse, delta))
    form = _form(rule, in_order, interpret)
    dq_BLHE, dk_BLKE, dv_BLKU = _pulled(form, inputs, dout_BLHU, lse_BHL * LOG2E, delta_BHL)
    size, width, values = keys.k_BMKE.shape[1], keys.k_BMKE.shape[-1], keys.v_BMKU.shape[-1]
    dq_BLKGE = _grouped(dq_BLHE, queries.q_BLKGE, width)
    return dq_BLKGE, dk_BLKE[:, :size, :, :width], dv_BLKU[:, :size, :, :values]


def _form(rule: Rule, in_order: bool, interpret: bool) -> Form:
    assert rule.window is None
    return Form(rule.scale, None, rule.softcap, interpret, in_order, exact=True)


def _of_ring(queries: Queries, keys: Keys) -> Inputs:
    documents_BL, key_documents_BL = queries.segments_BL, keys.segments_BM
    if documents_BL is None or key_documents_BL is None:
        documents_BL, key_documents_BL = jnp.zeros_like(queries.slots_BL), jnp.zeros_like(keys.slots_BM)
    key_documents_BL = jnp.where(keys.slots_BM < 0, NO_KEY, key_documents_BL)
    return _inputs(queries.q_BLKGE, keys.k_BMKE, keys.v_BMKU, documents_BL, key_documents_BL)


def _inputs(
    q_BLKGE: jax.Array, k_BLKE: jax.Array, v_BLKU: jax.Array, documents_BL: jax.Array, key_documents_BL: jax.Array
) -> Inputs:
    batch, length, kv_heads, group, _ = q_BLKGE.shape
    pad = partial(_padded, rows=min(LARGEST, max(SMALLEST, pl.next_power_of_2(length))))
    return Inputs(
        pad(q_BLKGE.reshape(batch, length, kv_heads * group, -1)),
        pad(k_BLKE),
        pad(v_BLKU),
        pad(documents_BL, fill=NO_QUERY),
        pad(key_documents_BL, fill=NO_KEY),
    )


def _grouped(x_BLHU: jax.Array, like_BLKGE: jax.Array, width: int) -> jax.Array:
    """Without what was added to it, by groups: [B, L, K, G, U]."""
    batch, length, kv_heads, group, _ = like_BLKGE.shape
    return x_BLHU[:, :length, :, :width].reshape(batch, length, kv_heads, group, width)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _flash(inputs: Inputs, form: Form) -> jax.Array:
    return _forward(inputs, form)[0]


def _spread(function: Callable[[Inputs], jax.Array], inputs: Inputs, rules: Rules | None) -> jax.Array:
    """The function of each device's own rows and heads; whole on every device where they do not divide."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    if rules is None or math.prod(free(mesh).values()) <= 1:
        return function(inputs)
    batch, _, heads = rules.partition(("batch", None, "kv_heads"), mesh)
    parts = [math.prod(mesh.shape[a] for a in ((x,) if isinstance(x, str) else x or ())) for x in (batch, heads)]
    batch = batch if inputs.k_BLKE.shape[0] % parts[0] == 0 else None
    heads = heads if inputs.k_BLKE.shape[2] % parts[1] == 0 else None
    specs = Inputs(*[PartitionSpec(batch, None, heads)] * 3, *[PartitionSpec(batch)] * 2)
    spread = jax.shard_map(function, in_specs=(specs,), out_specs=specs.q_BLHE, check_vma=False)
    out_BLHU: jax.Array = spread(inputs)
    return out_BLHU


# --- forward ---------------------------------------------------------------------------------------------------------


def _forward(inputs: Inputs, form: Form) -> tuple[jax.Array, tuple[Any, ...]]:
    out_BLHU, lse_BHL = checkpoint_name(_met(inputs, form), KEPT)
    return out_BLHU, (inputs, out_BLHU, lse_BHL)


def _met(inputs: Inputs, form: Form) -> tuple[jax.Array, jax.Array]:
    """Attention, and the logsumexp of its scores, which are in units of log2."""
    q, k, v = inputs[:3]
    batch, length, heads, _ = q.shape
    group, (rows, keys) = heads // k.shape[2], _blocks(length, q, v, most=128)
    last = length // rows - 1  # programs take the blocks from the last, whose rows see most: what starts late ends soon

    def block(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, rows, None, x.shape[3]), lambda i, h, b: (b, last - i, h, 0))

    line = pl.BlockSpec((None, rows), lambda i, h, b: (b, last - i))
    out_BLHU = _result((batch, length, heads, v.shape[3]), q.dtype, form)
    out_BLHU, lse_BHL = pl.pallas_call(
        partial(_forward_kernel, form=form, keys=keys),
        grid=(last + 1, heads, batch),
        in_specs=[Inputs(block(q), _read(k, group), _read(v, group), line, _line(length))],
        out_specs=(block(out_BLHU), pl.BlockSpec((None, None, rows), lambda i, h, b: (b, h, last - i))),
        out_shape=(out_BLHU, jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)),
        compiler_params=triton.CompilerParams(num_warps=8 if rows >= 128 else 4, num_stages=2),
        interpret=form.interpret,
        name="flash_forward",
    )(inputs)
    return out_BLHU, lse_BHL


def _forward_kernel(refs: Inputs, out_ref: Any, lse_ref: Any, *, form: Form, keys: int) -> None:
    """One block of queries of one head over the keys it may see."""
    rows, width = out_ref.shape
    first = (pl.num_programs(0) - 1 - pl.program_id(0)) * rows
    q, documents_Q = _load(refs.q_BLHE), refs.documents_BL[...]

    def step(j: Any, carry: Any) -> Any:
        out, top_Q, total_Q = carry
        at = pl.ds(j * keys, keys)
        s_QR, _ = _scores(q, _load(refs.k_BLKE, at), form)
        seen_QR = _seen(first, j * keys, documents_Q[:, None], refs.key_documents_BL[at][None], form)
        new_Q = jnp.maximum(top_Q, jnp.max(jnp.where(seen_QR, s_QR, HIDDEN), axis=1))
        p_QR = jnp.where(seen_QR, jnp.exp2(s_QR - new_Q[:, None]), 0.0)
        shrink_Q, p_low = jnp.exp2(top_Q - new_Q), p_QR.astype(refs.v_BLKU.dtype)
        out = [o * shrink_Q[:, None] + _dot(p_low, v) for o, v in zip(out, _load(refs.v_BLKU, at), strict=True)]
        return out, new_Q, total_Q * shrink_Q + jnp.sum(p_QR, axis=1)

    start = (_zeros(rows, width), jnp.full(rows, HIDDEN, jnp.float32), jnp.zeros(rows, jnp.float32))
    out, top_Q, total_Q = jax.lax.fori_loop(*_keys_seen(refs, first, rows, keys, form), step, start)
    total_Q = jnp.where(total_Q == 0, 1.0, total_Q)
    _store(out_ref, [o / total_Q[:, None] for o in out])
    lse_ref[...] = top_Q + jnp.log2(total_Q)


# --- backward --------------------------------------------------------------------------------------------------------


def _backward(form: Form, saved: tuple[Any, ...], dout_BLHU: jax.Array) -> tuple[Inputs]:
    inputs, out_BLHU, lse_BHL = saved
    delta_BHL = jnp.einsum("BLHU,BLHU->BHL", out_BLHU, dout_BLHU, preferred_element_type=jnp.float32)
    return (Inputs(*_pulled(form, inputs, dout_BLHU, lse_BHL, delta_BHL), None, None),)


def _pulled(
    form: Form, inputs: Inputs, dout_BLHU: jax.Array, lse_BHL: jax.Array, delta_BHL: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of queries, keys and values."""
    q, k, v = inputs[:3]
    batch, length, heads, _ = q.shape
    kv_heads = k.shape[2]
    group, (keeps, takes) = heads // kv_heads, _blocks(length, q, v, most=64)
    compiled = triton.CompilerParams(num_warps=8, num_stages=2)
    kernel = partial(pl.pallas_call, compiler_params=compiled, interpret=form.interpret)

    def block(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, keeps, None, x.shape[3]), lambda i, h, b: (b, i, h, 0))

    def readers(x: jax.Array) -> pl.BlockSpec:  # all query heads that read one head of keys
        return pl.BlockSpec((None, length, group, x.shape[3]), lambda i, h, b: (b, 0, h, 0))

    line = pl.BlockSpec((None, keeps), lambda i, h, b: (b, i))
    sums = pl.BlockSpec((None, group, length), lambda i, h, b: (b, h, 0))
    dk_BLKE, dv_BLKU = kernel(
        partial(_keys_kernel, form=form, rows=takes),
        grid=(length // keeps, kv_heads, batch),
        in_specs=[Inputs(readers(q), block(k), block(v), _line(length), line), readers(dout_BLHU), sums, sums],
        out_specs=(block(k), block(v)),
        out_shape=(_result(k.shape, k.dtype, form), _result(v.shape, v.dtype, form)),
        name="flash_backward_keys",
    )(inputs, dout_BLHU, lse_BHL, delta_BHL)
    sums = pl.BlockSpec((None, None, keeps), lambda i, h, b: (b, h, i))
    dq_BLHE = kernel(
        partial(_queries_kernel, form=form, keys=takes),
        grid=(length // keeps, heads, batch),
        in_specs=[
            Inputs(block(q), _read(k, group), _read(v, group), line, _line(length)),
            block(dout_BLHU),
            sums,
            sums,
        ],
        out_specs=block(q),
        out_shape=_result(q.shape, q.dtype, form),
        name="flash_backward_queries",
    )(inputs, dout_BLHU, lse_BHL, delta_BHL)
    return dq_BLHE, dk_BLKE, dv_BLKU


def _result(shape: tuple[int, ...], dtype: Any, form: Form) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32 if form.exact else dtype)


_flash.defvjp(_forward, _backward)


def _keys_kernel(
    refs: Inputs, dout_ref: Any, lse_ref: Any, delta_ref: Any, dk_ref: Any, dv_ref: Any, *, form: Form, rows: int
) -> None:
    """The gradients of one block of keys and values, over the queries of all heads that may see them.

    Scores are [R, Q] here, so that both products take them as they are."""
    length, group, _ = dout_ref.shape
    keys = dk_ref.shape[0]
    first = pl.program_id(0) * keys
    k, v, documents_R = _load(refs.k_BLKE), _load(refs.v_BLKU), refs.key_documents_BL[...]
    begin, end = jax.lax.div(first, rows) if form.in_order else 0, length // rows
    if form.window is not None:
        end = jnp.minimum(end, jax.lax.div(first + keys + form.window - 2, rows) + 1)

    def step(t: Any, carry: Any) -> Any:
        dk, dv = carry
        g, i = jax.lax.div(t, end - begin), begin + jax.lax.rem(t, end - begin)
        at = pl.ds(i * rows, rows)
        q, dout = _load(refs.q_BLHE, at, g), _load(dout_ref, at, g)
        s_RQ, slope_RQ = _scores(k, q, form)
        seen_RQ = _seen(i * rows, first, refs.documents_BL[at][None], documents_R[:, None], form)
        p_RQ = jnp.where(seen_RQ, jnp.exp2(s_RQ - lse_ref[g, at][None]), 0.0)
        dv = [d + _dot(p_RQ.astype(o.dtype), o) for d, o in zip(dv, dout, strict=True)]
        ds_RQ = p_RQ * (_products(v, dout) - delta_ref[g, at][None]) * slope_RQ
        dk = [d + _dot(ds_RQ.astype(x.dtype), x) for d, x in zip(dk, q, strict=True)]
        return dk, dv

    start = _zeros(*dk_ref.shape), _zeros(*dv_ref.shape)
    dk, dv = jax.lax.fori_loop(0, group * (end - begin), step, start)
    _store(dk_ref, [d * form.scale for d in dk])
    _store(dv_ref, dv)


def _queries_kernel(
    refs: Inputs, dout_ref: Any, lse_ref: Any, delta_ref: Any, dq_ref: Any, *, form: Form, keys: int
) -> None:
    """The gradient of one block of queries of one head, over the keys it may see."""
    rows, width = dq_ref.shape
    first = pl.program_id(0) * rows
    q, dout, documents_Q = _load(refs.q_BLHE), _load(dout_ref), refs.documents_BL[...]
    lse_Q, delta_Q = lse_ref[...], delta_ref[...]

    def step(j: Any, dq: Any) -> Any:
        at = pl.ds(j * keys, keys)
        k = _load(refs.k_BLKE, at)
        s_QR, slope_QR = _scores(q, k, form)
        seen_QR = _seen(first, j * keys, documents_Q[:, None], refs.key_documents_BL[at][None], form)
        p_QR = jnp.where(seen_QR, jnp.exp2(s_QR - lse_Q[:, None]), 0.0)
        ds_QR = p_QR * (_products(dout, _load(refs.v_BLKU, at)) - delta_Q[:, None]) * slope_QR
        return [d + _dot(ds_QR.astype(x.dtype), x) for d, x in zip(dq, k, strict=True)]

    dq = jax.lax.fori_loop(*_keys_seen(refs, first, rows, keys, form), step, _zeros(rows, width))
    _store(dq_ref, [d * form.scale for d in dq])


# --- scores ----------------------------------------------------------------------------------------------------------


def _scores(a: list[Any], b: list[Any], form: Form) -> tuple[Any, Any]:
    """The scores of rows a with rows b in units of log2, and their derivative by scale * a.b without that unit."""
    scores = _products(a, b) * form.scale
    if form.softcap is None:
        return scores * LOG2E, 1.0
    capped = jnp.tanh(scores / form.softcap)
    return capped * (form.softcap * LOG2E), 1.0 - capped * capped


def _seen(first_query: Any, first_key: Any, documents_Q: Any, documents_R: Any, form: Form) -> Any:
    """Which keys a query sees, as a mask of the shape that the two documents, [Q, 1] and [1, R] or [1, Q] and [R, 1],
    broadcast to.
    """
    if not form.in_order:
        return documents_Q == documents_R
    q = first_query + jax.lax.broadcasted_iota(jnp.int32, documents_Q.shape, int(documents_Q.shape[0] == 1))
    k = first_key + jax.lax.broadcasted_iota(jnp.int32, documents_R.shape, int(documents_R.shape[0] == 1))
    seen = (k <= q) & (documents_Q == documents_R)
    return seen if form.window is None else seen & (q - k < form.window)


def _keys_seen(refs: Inputs, first: Any, rows: int, keys: int, form: Form) -> tuple[Any, Any]:
    """The range of blocks of keys that `rows` queries from `first` on may see."""
    if not form.in_order:
        return 0, refs.k_BLKE.shape[0] // keys
    window = form.window
    begin = 0 if window is None else jax.lax.div(jnp.maximum(first - (window - 1), 0), keys)
    return begin, jax.lax.div(first + rows - 1, keys) + 1


# --- blocks and pieces -----------------------------------------------------------------------------------------------


def _blocks(length: int, q: jax.Array, v: jax.Array, most: int) -> tuple[int, int]:
    """(rows that a program keeps, at most `most`; rows that it takes at a time of those it walks over): what fits the
    registers and the shared memory of an H100, without spills.
    """
    row = (q.shape[3] + v.shape[3]) * q.dtype.itemsize
    keeps, takes = (most, 64) if row <= 640 else (64, 32) if row <= 1024 else (32, 16)
    return min(keeps, length), min(takes, length)


def _pieces(width: int) -> list[tuple[int, int]]:
    """A head's dimensions, a multiple of 16, as (start, size) of powers of two, largest first."""
    pieces, start = [], 0
    while start < width:
        size = 1 << ((width - start).bit_length() - 1)
        pieces.append((start, size))
        start += size
    return pieces


def _zeros(rows: int, width: int) -> list[Any]:
    return [jnp.zeros((rows, size), jnp.float32) for _, size in _pieces(width)]


def _load(ref: Any, *at: Any) -> list[Any]:
    return [ref[(*(at or (slice(None),)), pl.ds(start, size))] for start, size in _pieces(ref.shape[-1])]


def _store(ref: Any, pieces: list[Any]) -> None:
    for (start, size), piece in zip(_pieces(ref.shape[-1]), pieces, strict=True):
        ref[:, pl.ds(start, size)] = piece.astype(ref.dtype)


def _products(a: list[Any], b: list[Any]) -> Any:
    """Rows of a times rows of b."""
    return reduce(jax.lax.add, (_dot(x, y.T) for x, y in zip(a, b, strict=True)))


def _dot(a: Any, b: Any) -> Any:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _read(x: jax.Array, group: int) -> pl.BlockSpec:
    """All keys, or values, of the head that query head h reads."""
    return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), lambda i, h, b: (b, 0, jax.lax.div(h, group), 0))


def _line(length: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, length), lambda i, h, b: (b, 0))


def _padded(x: jax.Array, rows: int, fill: int = 0) -> jax.Array:
    """x [B, L] or [B, L, heads, E] with L up to a multiple of `rows`, and E up to one of 16."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % rows)
    if x.ndim > 2:
        widths[-1] = (0, -x.shape[-1] % SMALLEST)
    return jnp.pad(x, widths, constant_values=fill) if any(w for _, w in widths) else x
