"""The GPU's attention, interpreted, equals the loop in its values and its gradients, whatever is masked, grouped or
unequal; it visits no block that nobody sees, stays apart over a mesh, and lowers for a GPU where there is none."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from archzoo.layers.attention_gpu import flash_attention
from archzoo.layers.execution import REMAT
from archzoo.layers.products import HIDDEN, Keys, Queries, Rule
from archzoo.layers.ring import IN_PRODUCTS, Readers, in_kernels
from archzoo.sharding.rules import Rules

from . import reference
from .conftest import GRADIENT, HALF, LAYER, close, equations, largest, normal

SCALE = 0.3

CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "multi_head": ((2, 20, 2, 1, 16, 16), {}),
    "grouped": ((2, 23, 2, 3, 16, 16), {}),
    "multi_query": ((1, 33, 1, 4, 32, 16), {}),
    "unequal_head_sizes": ((2, 20, 2, 1, 48, 32), {}),
    "odd_head_sizes": ((2, 17, 1, 2, 5, 3), {}),
    "softcap": ((2, 20, 2, 2, 16, 16), {"softcap": 1.5}),
    "window": ((2, 40, 2, 2, 16, 16), {"window": 7}),
    "window_of_two": ((1, 20, 1, 1, 16, 16), {"window": 2}),
    "documents": ((2, 40, 2, 2, 16, 16), {"documents": True}),
    "everything": ((2, 40, 2, 2, 24, 16), {"window": 9, "softcap": 2.0, "documents": True}),
    "padding_before": ((3, 24, 2, 1, 16, 16), {"pads": (0, 3, 20)}),
    "several_blocks": ((1, 300, 1, 2, 48, 16), {}),
    "a_window_over_several_blocks": ((1, 300, 1, 2, 16, 16), {"window": 70, "softcap": 3.0}),
    "wide_heads": ((1, 150, 1, 1, 272, 16), {}),
}
"""(B, L, K, G, E, U) and what is masked."""


def inputs(sizes: tuple[int, ...]) -> tuple[Any, Any, Any, Any]:
    """q [B, L, K, G, E], k [B, L, K, E], v [B, L, K, U] and the outputs' cotangent."""
    batch, length, kv_heads, group, dim, value_dim = sizes
    return (
        normal(0, batch, length, kv_heads, group, dim) * (8 / dim) ** 0.5,
        normal(1, batch, length, kv_heads, dim),
        normal(2, batch, length, kv_heads, value_dim),
        normal(3, batch, length, kv_heads, group, value_dim),
    )


def documents(batch: int, length: int) -> Any:
    """Segment ids: documents of 1, 2, 3, ... tokens, another start in each row, and padding at the end of the first."""
    plain = np.repeat(np.arange(1, length + 1), np.arange(1, length + 1))
    rows = np.stack([plain[b : b + length] for b in range(batch)]).astype(np.int32)
    rows[0, -2:] = 0
    return rows


def exact(q: Any, k: Any, v: Any, dout: Any, seen_BLM: Any, softcap: float | None) -> Any:
    """float64 output and gradients of q, k and v by hand, with whole score matrices; queries that see nothing give
    zeros.
    """
    q, k, v, dout = (np.asarray(x, np.float64) for x in (q, k, v, dout))
    scores = SCALE * np.einsum("blkge,bmke->bkglm", q, k)
    capped = scores if softcap is None else softcap * np.tanh(scores / softcap)
    slope = 1.0 if softcap is None else 1 - (capped / softcap) ** 2
    seen = np.broadcast_to(seen_BLM[:, None, None], scores.shape)
    weights = np.exp(np.where(seen, capped - np.max(capped, axis=-1, keepdims=True), -np.inf))
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    dweights = np.einsum("blkgu,bmku->bkglm", dout, v)
    dscores = weights * (dweights - np.sum(weights * dweights, axis=-1, keepdims=True)) * slope * SCALE
    return (
        np.einsum("bkglm,bmku->blkgu", weights, v),
        np.einsum("bkglm,bmke->blkge", dscores, k),
        np.einsum("bkglm,blkge->bmke", dscores, q),
        np.einsum("bkglm,blkgu->bmku", weights, dout),
    )


@partial(jax.jit, static_argnames=("window", "softcap"))
def interpreted(
    q: Any, k: Any, v: Any, dout: Any, slots: Any = None, segments: Any = None, window: Any = None, softcap: Any = None
) -> Any:
    def attention(q: Any, k: Any, v: Any) -> Any:
        return flash_attention(q, k, v, slots, segments, scale=SCALE, window=window, softcap=softcap, interpret=True)

    out, pull = jax.vjp(attention, q, k, v)
    return out, *pull(dout)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients_equal_whole_score_matrices(case: str) -> None:
    sizes, fields = CASES[case]
    batch, length = sizes[:2]
    window, softcap = fields.get("window"), fields.get("softcap")
    segments = documents(batch, length) if "documents" in fields else None
    seen, slots = reference.seen(length, window, segments), None
    if "pads" in fields:
        slots = np.where(np.arange(length) < np.array(fields["pads"])[:, None], -1, np.arange(length)).astype(np.int32)
        seen = seen & (slots >= 0)[:, None, :]
    arrays = inputs(sizes)
    out, *gradients = interpreted(*arrays, slots, segments, window, softcap)
    expected, *expected_gradients = exact(*arrays, seen, softcap)
    close(out, expected, LAYER)
    close(gradients, expected_gradients, GRADIENT)


def test_whole_score_matrices_equal_the_loop() -> None:
    """The reference above against the one that everything else is held to."""
    q, k, v, dout = inputs((2, 9, 2, 2, 8, 4))
    seen = reference.seen(9, 4)
    flat = q.reshape(2, 9, 4, 8).astype(np.float64)
    expected = reference.attend(flat, k.astype(np.float64), v.astype(np.float64), seen, SCALE, 2.0)
    close(exact(q, k, v, dout, seen, 2.0)[0].reshape(2, 9, 4, 4), expected, LAYER)


def test_bfloat16_is_near_float64() -> None:
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs((2, 40, 2, 2, 48, 32))]
    out = interpreted(*arrays)
    assert all(a.dtype == jnp.bfloat16 for a in out)
    close(out, exact(*arrays, reference.seen(40), None), 2 * HALF)  # of the weights, and of the result


@pytest.mark.parametrize("in_order", [False, True], ids=["all_keys", "keys_in_order"])
@pytest.mark.parametrize("packed", [False, True], ids=["row", "packed"])
def test_a_ring_of_kernels_is_one_of_products(in_order: bool, packed: bool) -> None:
    """What queries give of a block of keys, that may be wholly before them, and what the block gives back."""
    q, k, v, dout = inputs((2, 40, 2, 3, 24, 12))
    slots = np.broadcast_to(np.arange(40, dtype=np.int32), (2, 40))
    key_slots = np.where(slots < np.array([[0], [5]]), -1, slots)
    own, past = (documents(2, 40), documents(2, 70)[:, 30:]) if packed else (None, None)
    keys = Keys(k, v, key_slots, own if in_order else past)
    queries = Queries(q, slots if in_order else slots + 40, own)
    rule = Rule(SCALE, None, 2.0)
    found = []
    for engine in (IN_PRODUCTS, in_kernels(interpret=True)):
        part = jax.jit(partial(engine.part, rule=rule, in_order=in_order))(queries, keys)
        seen = part.lse_BLKG1 > HIDDEN
        lse = jnp.where(seen, part.lse_BLKG1 + 0.5, 0)  # they see more than this block
        readers = Readers(*queries, lse, jnp.sum(part.out_BLKGU * dout, axis=-1, keepdims=True), dout)
        pulled = jax.jit(partial(engine.pulled, rule=rule, in_order=in_order))(readers, keys)
        found.append((jnp.where(seen, part.out_BLKGU, 0), part.lse_BLKG1, *pulled))
    close(found[1], found[0], GRADIENT)


# --- what is not computed --------------------------------------------------------------------------------------------


def test_blocks_that_no_query_sees_are_not_visited() -> None:
    """What is not a number spreads to every block that touches it, even where a mask gives it no weight."""
    length, window, poisoned = 640, 64, 128
    q, k, v, dout = inputs((1, length, 1, 1, 16, 16))
    for x in (q, k, v, dout):
        x[:, :poisoned] = np.nan
    out, dq, dk, dv = (
        np.isfinite(x).all(axis=(0, *range(2, x.ndim))) for x in interpreted(q, k, v, dout, window=window)
    )
    untouched = poisoned + window + 128  # as far as the window reaches, in whole blocks
    for finite in (out, dq, dk, dv):
        assert not finite[:poisoned].any()
        assert finite[untouched:].all()
    early = interpreted(*(x[:, ::-1].copy() for x in (q, k, v, dout)))
    for x in early[:2]:  # the last keys, which no earlier query sees
        assert np.isfinite(x[:, : length - poisoned]).all()


def shapes(length: int, heads: int = 2) -> Any:
    return [jax.ShapeDtypeStruct((2, length, heads, *x), jnp.bfloat16) for x in ((1, 192), (192,), (128,), (1, 128))]


def both_ways(q: Any, k: Any, v: Any, dout: Any, rules: Any = None) -> Any:
    out, pull = jax.vjp(lambda *qkv: flash_attention(*qkv, scale=SCALE, softcap=30.0, window=900, rules=rules), q, k, v)
    return out, pull(dout)


def test_no_array_is_larger_than_the_queries() -> None:
    for length in (1024, 4096):
        assert largest(both_ways, *shapes(length)) == 2 * length * 2 * 192


@pytest.mark.parametrize(("remat", "kernels"), [("none", 2), ("full", 3)])
def test_attention_runs_again_for_its_gradient_only_where_nothing_is_kept(remat: str, kernels: int) -> None:
    loss = lambda q, k, v: jnp.sum(flash_attention(jnp.sin(q), k, v, scale=SCALE))  # noqa: E731
    both = jax.value_and_grad(jax.checkpoint(loss, policy=REMAT[remat]))
    found = list(equations(jax.make_jaxpr(jax.jit(both))(*shapes(256)[:3]).jaxpr))
    read = {id(v) for e in found for v in e.invars}  # a call whose results nobody reads is dropped when it is compiled
    calls = [e for e in found if e.primitive.name == "pallas_call" and any(id(v) in read for v in e.outvars)]
    assert len(calls) == kernels  # forward, and the gradient of queries: that of keys is not asked for


def test_a_mesh_splits_batch_and_heads_and_nothing_else() -> None:
    """Kernels are opaque to the partitioner: each must be given its device's part, where it divides."""

    def kernel_queries(heads: int) -> set[Any]:
        mesh = AbstractMesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
        with jax.sharding.use_abstract_mesh(mesh):
            jaxpr = jax.make_jaxpr(partial(both_ways, rules=Rules()))(*shapes(256, heads))
        return {e.invars[0].aval.shape for e in equations(jaxpr.jaxpr) if e.primitive.name == "pallas_call"}

    assert kernel_queries(heads=4) == {(1, 256, 2, 192)}
    assert kernel_queries(heads=3) == {(1, 256, 3, 192)}


def test_the_kernels_lower_for_a_gpu_where_there_is_none() -> None:
    device = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Explicit,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        text = jax.jit(both_ways).trace(*shapes(512)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") == 3  # forward, and the gradients of keys and of queries
    assert "512x512" not in text
