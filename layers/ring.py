"""Attention over a sequence that several devices share: queries stay, and keys and values travel.

Ring attention (Liu, Zaharia & Abbeel 2023, section 3): blocks of keys and values go around the devices, each of which
adds what its queries give of the block that is there, by the logsumexp of the scores, in float32. The gradient is a
second ring, in which blocks travel with the gradients that they gather: what a device keeps is its own block, its
outputs and their logsumexp, so that memory is linear and no device ever holds the keys of the whole sequence.

Under a causal mask the later device has more to do, and all wait for the last. So each is dealt an early half block and
a late one, i and 2n - 1 - i of 2n ("zig-zag": Zhu 2024; as in Llama 3's training, 2024, section 3.3.2), and outputs are
dealt back. At every stop a device then has two half products to do and nothing to skip: those of its late queries with
the early keys there, and those of its early queries with the same or of its late ones with the late keys, whichever are
before. Blocks that do not halve stay whole, and what is hidden is masked.

What travels may be something that keys and values are read out of, as the latents of latent attention.

A window that reaches no further than half way around has a shorter way: the last keys of the devices before come by
themselves (`neighbours`), and the rest is attention on one device.

Dimensions: as in attention.py, with L queries and M keys of one device; n devices, and N = B * K, R = G * L
(products.py)."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from .execution import KEPT
from .ordered import BLOCKS, Told, blocks, pulled_back, weighed
from .products import HIDDEN, Block, Keys, Queries, Rule, by_head, pad_axis, rows, unhead, unrows
from .spread import Line

QUERY_BLOCK = 1024
"""Queries that meet a block of keys at a time, at most."""

Arrays = tuple[jax.Array, ...]
Read = Callable[[Arrays, Arrays], Arrays]
"""(what travels, weights that stay) -> (k_BMKE, v_BMKU)."""


class Held(NamedTuple):
    """What travels, [B, M, ...]: all that keys and values are read out of, and where they are."""

    arrays: Arrays
    slots_BM: jax.Array
    segments_BM: jax.Array | None


class Engine(NamedTuple):
    """How queries meet a block of keys, and the way back.

    part: (queries, keys, rule, in_order) -> a Part.  pulled: (readers, keys, rule, in_order) -> the gradients of
    queries, keys and values, float32.  in_order: the keys are the queries' own, and later ones are not looked at."""

    part: Callable[[Queries, Keys, Rule, bool], "Part"]
    pulled: Callable[["Readers", Keys, Rule, bool], Arrays]


class Ring(NamedTuple):
    """line: the devices.  read: None where keys and values themselves travel.  halves: blocks are dealt in halves."""

    line: Line
    rule: Rule
    read: Read | None
    halves: bool
    engine: Engine


class Part(NamedTuple):
    """What queries give of some keys, and the logsumexp of their scores, HIDDEN where none is seen; float32."""

    out_BLKGU: jax.Array
    lse_BLKG1: jax.Array


class Readers(NamedTuple):
    """Queries, with what their gradient needs: logsumexp of all scores, out . dout, and dout."""

    q_BLKGE: jax.Array
    slots_BL: jax.Array
    segments_BL: jax.Array | None
    lse_BLKG1: jax.Array
    mean_BLKG1: jax.Array
    dout_BLKGU: jax.Array


def around(
    queries: Queries,
    held: Held,
    line: Line,
    rule: Rule,
    read: Read | None = None,
    weights: Arrays = (),
    sinks_KG: jax.Array | None = None,
    target: str = "auto",
) -> jax.Array:
    """Attention of this device's queries to the keys of all devices of the line: [B, L, K, G, U], in q's dtype.

    To be called inside a shard_map. held: of this device, as many tokens as queries. target: on gpu, halves meet in
    kernels, which know no windows."""
    halves = queries.q_BLKGE.shape[1] % 2 == 0
    kernels = target == "gpu" and halves and rule.window is None
    ring = Ring(line, rule, read, halves, in_kernels() if kernels else IN_PRODUCTS)
    if ring.halves:
        queries, held = jax.tree.map(partial(_dealt, line=line), (queries, held))
    marks = queries.slots_BL, queries.segments_BL, held.slots_BM, held.segments_BM
    out_BLKGU = _ring(queries.q_BLKGE, held.arrays, weights, sinks_KG, marks, ring)
    return _dealt_back(out_BLKGU, line) if ring.halves else out_BLKGU


def neighbours(keys: Keys, reach: int, line: Line) -> Keys:
    """The `reach` keys before this device's own, from the devices that hold them, in order; before the first one's are
    none.
    """
    length = keys.k_BMKE.shape[1]
    moved = []
    for step in range(-(-reach // length), 0, -1):
        taken = min(length, reach - (step - 1) * length)
        came = _passed(jax.tree.map(lambda x, taken=taken: x[:, -taken:], keys), line, step)
        is_before = jax.lax.axis_index(line.axes) >= step
        moved.append(came._replace(slots_BM=jnp.where(is_before, came.slots_BM, -1)))
    before: Keys = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *moved)
    return before


# --- who has what ----------------------------------------------------------------------------------------------------


def _passed(tree: Any, line: Line, step: int = 1) -> Any:
    """What the device `step` before this one has; the last is before the first."""
    moves = [(i, (i + step) % line.devices) for i in range(line.devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, line.axes, moves), tree)


def _deals(line: Line) -> list[list[tuple[int, int]]]:
    """Where each device's first half goes, and where its second."""
    last = 2 * line.devices - 1
    return [[(i, min(half, last - half)) for i in range(line.devices) for half in [2 * i + at]] for at in (0, 1)]


def _dealt(x_BL: jax.Array, line: Line) -> jax.Array:
    """The early and the late half block of this device, of blocks in order."""
    halves = jnp.split(x_BL, 2, axis=1)
    first, second = (jax.lax.ppermute(half, line.axes, moves) for half, moves in zip(halves, _deals(line), strict=True))
    odd = jax.lax.axis_index(line.axes) % 2 == 1  # whose early half is some device's second
    return jnp.concatenate([jnp.where(odd, second, first), jnp.where(odd, first, second)], axis=1)


def _dealt_back(x_BL: jax.Array, line: Line) -> jax.Array:
    """The inverse."""
    early, late = jnp.split(x_BL, 2, axis=1)
    odd = jax.lax.axis_index(line.axes) % 2 == 1
    halves = jnp.where(odd, late, early), jnp.where(odd, early, late)
    back = [
        jax.lax.ppermute(half, line.axes, [(there, here) for here, there in moves])
        for half, moves in zip(halves, _deals(line), strict=True)
    ]
    return jnp.concatenate(back, axis=1)


def _asking(tree: Any, before: jax.Array, ring: Ring) -> Any:
    """Who has something to see of a block, by rows: late queries, and early ones if the block is before this device's,
    else late ones again.
    """

    def chosen(x_BL: jax.Array) -> jax.Array:
        early, late = jnp.split(x_BL, 2, axis=1)
        return jnp.concatenate([late, jnp.where(before, early, late)])

    return jax.tree.map(chosen, tree) if ring.halves else tree


def _asked(tree: Any, before: jax.Array, ring: Ring) -> Any:
    """What they see of it: early keys, and early ones again if the block is before this device's, else late ones."""

    def chosen(x_BM: jax.Array) -> jax.Array:
        early, late = jnp.split(x_BM, 2, axis=1)
        return jnp.concatenate([early, jnp.where(before, early, late)])

    return jax.tree.map(chosen, tree) if ring.halves else tree


def _unchosen(x: jax.Array, first_late: bool, before: jax.Array, ring: Ring) -> jax.Array:
    """The sum of what came of each half: the transpose of `_asking` (first_late), and of `_asked`."""
    if not ring.halves:
        return x
    first, second = jnp.split(x, 2)
    early, late = jnp.where(before, second, 0), jnp.where(before, 0, second)
    return jnp.concatenate([early, late + first] if first_late else [early + first, late], axis=1)


# --- the ring --------------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _ring(
    q_BLKGE: jax.Array, arrays: Arrays, weights: Arrays, sinks_KG: jax.Array | None, marks: Any, ring: Ring
) -> jax.Array:
    return _forward(q_BLKGE, arrays, weights, sinks_KG, marks, ring)[0]


def _forward(
    q_BLKGE: jax.Array, arrays: Arrays, weights: Arrays, sinks_KG: jax.Array | None, marks: Any, ring: Ring
) -> tuple[jax.Array, Any]:
    queries, held, last = Queries(q_BLKGE, *marks[:2]), Held(arrays, *marks[2:]), ring.line.devices - 1

    def stop(so_far: Part, held: Held, step: Any) -> Part:
        before = jax.lax.axis_index(ring.line.axes) >= step
        keys = _asked(_keys(held, _read(ring, held.arrays, weights)), before, ring)
        seen = ring.engine.part(_asking(queries, before, ring), keys, ring.rule, False)
        if not ring.halves:
            return _joined(so_far, seen)
        late, chosen = (Part(*each) for each in zip(*(jnp.split(x, 2) for x in seen), strict=True))
        by_early = chosen._replace(lse_BLKG1=jnp.where(before, chosen.lse_BLKG1, HIDDEN))
        by_late = _joined(late, chosen._replace(lse_BLKG1=jnp.where(before, HIDDEN, chosen.lse_BLKG1)))
        return _joined(so_far, Part(*(jnp.concatenate(x, axis=1) for x in zip(by_early, by_late, strict=True))))

    def on(carry: tuple[Held, Part], step: jax.Array) -> tuple[Held, Part]:
        held, so_far = carry
        return _passed(held, ring.line), stop(so_far, held, step)

    arriving = _passed(held, ring.line)  # each block sets out before the one that is there is worked on
    so_far = ring.engine.part(queries, _keys(held, _read(ring, arrays, weights)), ring.rule, True)
    arriving, so_far = _rounds(on, (arriving, so_far), last)
    out_BLKGU, lse_BLKG1 = stop(so_far, arriving, last)
    if sinks_KG is not None:
        total_BLKG1 = jnp.logaddexp(lse_BLKG1, sinks_KG[..., None])
        out_BLKGU, lse_BLKG1 = out_BLKGU * jnp.exp(lse_BLKG1 - total_BLKG1), total_BLKG1
    # A query that sees nothing has no gradient: exp(HIDDEN - 0) is 0.
    lse_BLKG1 = jnp.where(lse_BLKG1 > HIDDEN, lse_BLKG1, 0)
    out_BLKGU, lse_BLKG1 = checkpoint_name((out_BLKGU.astype(q_BLKGE.dtype), lse_BLKG1), KEPT)
    return out_BLKGU, (q_BLKGE, arrays, weights, sinks_KG, marks, out_BLKGU, lse_BLKG1)


def _backward(ring: Ring, saved: Any, dout_BLKGU: jax.Array) -> tuple[Any, ...]:
    q_BLKGE, arrays, weights, sinks_KG, marks, out_BLKGU, lse_BLKG1 = saved
    mean_BLKG1 = jnp.sum(out_BLKGU.astype(jnp.float32) * dout_BLKGU, axis=-1, keepdims=True)
    readers = Readers(q_BLKGE, marks[0], marks[1], lse_BLKG1, mean_BLKG1, dout_BLKGU)
    held, last = Held(arrays, *marks[2:]), ring.line.devices - 1

    def stop(held: Held, step: Any) -> Any:
        """The gradients of this device's queries, of what is there, and of the weights."""
        read, unread = _read_with_pull(ring, held.arrays, weights)
        keys = _keys(held, read)
        if isinstance(step, int) and step == 0:
            dq_BLKGE, *dkeys = ring.engine.pulled(readers, keys, ring.rule, True)
            return dq_BLKGE, *unread(tuple(dkeys))
        before = jax.lax.axis_index(ring.line.axes) >= step
        asking, asked = _asking(readers, before, ring), _asked(keys, before, ring)
        dq_BLKGE, *dkeys = ring.engine.pulled(asking, asked, ring.rule, False)
        dkeys = [_unchosen(x, False, before, ring) for x in dkeys]
        return _unchosen(dq_BLKGE, True, before, ring), *unread(tuple(dkeys))

    def added(a: Any, b: Any) -> Any:
        return jax.tree.map(jnp.add, a, b)

    def on(carry: Any, step: jax.Array) -> Any:
        held, (dq_BLKGE, moving, dweights) = carry
        onward, moved = _passed((held, moving), ring.line)
        return onward, added((dq_BLKGE, moved, dweights), stop(held, step))

    arriving = _passed(held, ring.line)
    arriving, (dq_BLKGE, moving, dweights) = _rounds(on, (arriving, stop(held, 0)), last)
    moved = _passed(moving, ring.line)
    dq_BLKGE, moving, dweights = added((dq_BLKGE, moved, dweights), stop(arriving, last))
    home = _passed(moving, ring.line)
    dsinks_KG = None
    if sinks_KG is not None:
        dsinks_KG = -jnp.sum(jnp.exp(sinks_KG[..., None] - lse_BLKG1) * mean_BLKG1, axis=(0, 1))[..., 0]
        dsinks_KG = dsinks_KG.astype(sinks_KG.dtype)
    cast = partial(jax.tree.map, lambda gradient, x: gradient.astype(x.dtype))
    return dq_BLKGE.astype(q_BLKGE.dtype), cast(home, arrays), cast(dweights, weights), dsinks_KG, None


_ring.defvjp(_forward, _backward)


def _rounds(on: Callable[[Any, jax.Array], Any], carry: Any, last: int) -> Any:
    """All stops but the first and the last, from where nothing goes on."""
    return (
        carry if last == 1 else jax.lax.scan(lambda carry, step: (on(carry, step), None), carry, jnp.arange(1, last))[0]
    )


def _keys(held: Held, keys: Arrays) -> Keys:
    return Keys(keys[0], keys[1], held.slots_BM, held.segments_BM)


def _read(ring: Ring, arrays: Arrays, weights: Arrays) -> Arrays:
    return arrays if ring.read is None else ring.read(arrays, weights)


def _read_with_pull(ring: Ring, arrays: Arrays, weights: Arrays) -> tuple[Arrays, Callable[[Arrays], Any]]:
    """Keys and values, and from their gradients, float32, those of what they are read out of and of the weights."""
    if ring.read is None:
        return arrays, lambda dkeys: (dkeys, ())
    keys, pull = jax.vjp(ring.read, arrays, weights)

    def unread(dkeys: Arrays) -> Any:
        pulled = pull(tuple(d.astype(x.dtype) for d, x in zip(dkeys, keys, strict=True)))
        return jax.tree.map(lambda x: x.astype(jnp.float32), pulled)

    return keys, unread


# --- a device's queries and a block of keys --------------------------------------------------------------------------


def _joined(a: Part, b: Part) -> Part:
    """Attention to the keys of both."""
    lse_BLKG1 = jnp.logaddexp(a.lse_BLKG1, b.lse_BLKG1)
    shares = (part.out_BLKGU * jnp.exp(part.lse_BLKG1 - lse_BLKG1) for part in (a, b))
    return Part(reduce(jnp.add, shares), lse_BLKG1)


def in_products(queries: Queries, keys: Keys, rule: Rule, in_order: bool) -> Part:
    """Attention to all keys that the marks let a query see, a block of queries at a time."""
    length = queries.q_BLKGE.shape[1]
    if in_order and length <= BLOCKS * QUERY_BLOCK:
        parts = [in_products(*_within(queries, keys, block), rule, False) for block in blocks(length, None, 0)]
        return Part(*(jnp.concatenate(each, axis=1) for each in zip(*parts, strict=True)))
    k_NME, v_NMU = by_head(keys.k_BMKE), by_head(keys.v_BMKU)

    def of(block: Queries) -> Part:
        seen_by = block.slots_BL, block.segments_BL, keys.slots_BM, keys.segments_BM
        return Part(*(unrows(x, block.q_BLKGE) for x in weighed(rows(block.q_BLKGE), k_NME, v_NMU, seen_by, rule)))

    if length <= QUERY_BLOCK:
        return of(queries)
    return Part(*(_uncut(x, length) for x in jax.lax.map(of, jax.tree.map(_cut, queries))))


def back_in_products(readers: Readers, keys: Keys, rule: Rule, in_order: bool) -> tuple[jax.Array, ...]:
    """The gradients of queries, keys and values, float32."""
    length = readers.q_BLKGE.shape[1]
    if in_order and length <= BLOCKS * QUERY_BLOCK:
        pulled = [back_in_products(*_within(readers, keys, block), rule, False) for block in blocks(length, None, 0)]
        dq, dk, dv = zip(*pulled, strict=True)
        dkeys = (reduce(jnp.add, (pad_axis(d, length, 1) for d in each)) for each in (dk, dv))
        return jnp.concatenate(dq, axis=1), *dkeys
    k_NME, v_NMU = by_head(keys.k_BMKE), by_head(keys.v_BMKU)

    def of(block: Readers) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        seen_by = block.slots_BL, block.segments_BL, keys.slots_BM, keys.segments_BM
        told = Told(*(rows(x) for x in block[3:]))
        dq_NRE, dk_NME, dv_NMU = pulled_back(rows(block.q_BLKGE), k_NME, v_NMU, seen_by, rule, told)
        return unrows(dq_NRE, block.q_BLKGE), (dk_NME, dv_NMU)

    def on(so_far: Any, block: Readers) -> tuple[Any, Any]:
        dq_BLKGE, more = of(block)
        return jax.tree.map(jnp.add, so_far, more), dq_BLKGE

    if length <= QUERY_BLOCK:
        dq_BLKGE, (dk_NME, dv_NMU) = of(readers)
    else:
        none = jnp.zeros(k_NME.shape, jnp.float32), jnp.zeros(v_NMU.shape, jnp.float32)
        found: Any = jax.lax.scan(on, none, jax.tree.map(_cut, readers))
        (dk_NME, dv_NMU), dq_BLKGE = found[0], _uncut(found[1], length)
    return dq_BLKGE, unhead(dk_NME, keys.k_BMKE), unhead(dv_NMU, keys.v_BMKU)


IN_PRODUCTS = Engine(in_products, back_in_products)


def in_kernels(interpret: bool = False) -> Engine:
    """The same by the kernels for GPUs, for rules without a window and blocks of which slots hide nothing but padding.

    interpret: as plain JAX, to test them."""
    from . import attention_gpu  # Pallas is slow to import, and of no use elsewhere

    def part(queries: Queries, keys: Keys, rule: Rule, in_order: bool) -> Part:
        return Part(*attention_gpu.met(queries, keys, rule, in_order, interpret))

    def pulled(readers: Readers, keys: Keys, rule: Rule, in_order: bool) -> tuple[jax.Array, ...]:
        queries = Queries(readers.q_BLKGE, readers.slots_BL, readers.segments_BL)
        return attention_gpu.met_back(queries, readers[3:], keys, rule, in_order, interpret)

    return Engine(part, pulled)


def _cut(x_BL: jax.Array) -> jax.Array:
    """[B, L, ...] -> [count, B, QUERY_BLOCK, ...]; queries that are added see nothing."""
    count = -(-x_BL.shape[1] // QUERY_BLOCK)
    padded = pad_axis(x_BL, count * QUERY_BLOCK, 1, fill=-1 if x_BL.ndim == 2 else 0)
    return jnp.moveaxis(padded.reshape(x_BL.shape[0], count, QUERY_BLOCK, *x_BL.shape[2:]), 1, 0)


def _uncut(x: jax.Array, length: int) -> jax.Array:
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length]


def _within(readers: Any, keys: Keys, block: Block) -> tuple[Any, Keys]:
    """The queries of a block, and the keys that hold all they see."""
    queries = jax.tree.map(lambda x: x[:, block.start : block.end], readers)
    return queries, jax.tree.map(lambda x: x[:, block.first : block.last], keys)
