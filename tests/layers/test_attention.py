"""Attention equals the loop over heads and queries, whichever way it is computed, in linear memory where it is
windowed, and no query learns of the future."""

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers import attend as module
from archzoo.layers import ordered
from archzoo.layers.attend import attend, over_parts
from archzoo.layers.attention import Attention, Scores, Values
from archzoo.layers.chunked import ChunkedAttention
from archzoo.layers.execution import Execution
from archzoo.layers.norms import L2Norm, LayerNorm, QKNorm, RMSNorm
from archzoo.layers.products import Keys, Queries, Rule, mean_keys
from archzoo.layers.rope import Rope
from archzoo.layers.spec import Context
from archzoo.layers.temperature import Temperature

from . import reference
from .conftest import GRADIENT, LAYER, close, largest, normal

E, U = 4, 3


def inputs(batch: int, length: int, kv_heads: int, group: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """q [B, L, K, G, E], k [B, L, K, E] and v [B, L, K, U]."""
    return (
        3 * normal(seed, batch, length, kv_heads, group, E),
        normal(seed + 1, batch, length, kv_heads, E),
        normal(seed + 2, batch, length, kv_heads, U),
    )


def documents(batch: int, length: int) -> Any:
    """Segment ids: documents of 1, 2, 3, ... tokens, another start in each row, and padding at the end of the first."""
    plain = np.repeat(np.arange(1, length + 1), np.arange(1, length + 1))
    rows = np.stack([plain[b : b + length] for b in range(batch)]).astype(np.int32)
    rows[0, -2:] = 0
    return rows


def in_row(
    q: Any, k: Any, v: Any, segments: Any = None, window: Any = None, softcap: Any = None, scale: float = 0.5
) -> Any:
    """`attend` over a whole row."""
    slots = jnp.arange(q.shape[1], dtype=jnp.int32)
    keys = [Keys(k, v, slots[None], segments)]
    return attend(q, keys, slots, segments, scale=scale, window=window, softcap=softcap)


attended = jax.jit(in_row, static_argnames=("window", "softcap", "scale"))


@partial(jax.jit, static_argnames=("past", "window"))
def attended_after(q: Any, k: Any, v: Any, past: int, window: Any = None, pad_B: Any = None) -> Any:
    """`attend` of the tokens from `past` on, to those before in a cache (a ring where there is a window) and
    themselves.
    """
    batch, length = q.shape[:2]
    size = window or past
    latest = np.array([max((t for t in range(past) if t % size == j), default=-1) for j in range(size)])
    at = np.maximum(latest, 0)
    slots = jnp.arange(past, length, dtype=jnp.int32)
    pad = jnp.zeros(batch, jnp.int32) if pad_B is None else pad_B
    held_BM, new_BM = (jnp.where(s < pad[:, None], -1, s[None]) for s in (jnp.asarray(latest), slots))
    keys = [Keys(k[:, at], v[:, at], held_BM), Keys(k[:, past:], v[:, past:], new_BM)]
    return attend(q[:, past:], keys, slots, scale=0.5, window=window)


def expected(q: Any, k: Any, v: Any, seen: Any, softcap: Any = None, scale: float = 0.5) -> Any:
    """The same, by the loop."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    batch, length, kv_heads, group, _ = q.shape
    out = reference.attend(q.reshape(batch, length, -1, E), k, v, seen, scale, softcap)
    return out.reshape(batch, length, kv_heads, group, -1)


# --- the core --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kv_heads", "group"), [(4, 1), (1, 4), (2, 3)], ids=["multi_head", "multi_query", "grouped"])
@pytest.mark.parametrize("segmented", [False, True])
def test_attention_equals_the_loop(kv_heads: int, group: int, segmented: bool) -> None:
    q, k, v = inputs(2, 9, kv_heads, group)
    segments = documents(2, 9) if segmented else None
    close(attended(q, k, v, segments), expected(q, k, v, reference.seen(9, None, segments)), LAYER)


@pytest.mark.parametrize("fields", [{"softcap": 1.5}, {"scale": 0.11}, {"window": 5}, {"window": 1}, {"window": 99}])
def test_softcap_scale_and_window_equal_the_loop(fields: dict[str, Any]) -> None:
    q, k, v = inputs(2, 9, 2, 2)
    seen = reference.seen(9, fields.get("window"))
    rest = {name: value for name, value in fields.items() if name != "window"}
    close(attended(q, k, v, **fields), expected(q, k, v, seen, **rest), LAYER)


@pytest.mark.parametrize(("length", "window"), [(7, 3), (9, 4), (12, 4), (23, 5), (9, 1)])
@pytest.mark.parametrize("segmented", [False, True])
def test_windows_in_blocks_equal_the_loop(length: int, window: int, segmented: bool) -> None:
    assert length > 2 * window  # so it goes in blocks; most of these lengths are no multiple of the window
    q, k, v = inputs(2, length, 2, 2)
    segments = documents(2, length) if segmented else None
    close(attended(q, k, v, segments, window), expected(q, k, v, reference.seen(length, window, segments)), LAYER)


@pytest.mark.parametrize(
    ("past", "new", "window"), [(4, 5, None), (9, 1, 4), (9, 6, 4), (2, 6, 4), (9, 11, 4), (2, 9, 4)]
)
def test_attention_to_a_cache_and_to_the_new_tokens_equals_the_loop(past: int, new: int, window: int | None) -> None:
    q, k, v = inputs(2, past + new, 2, 2)
    out = expected(q, k, v, reference.seen(past + new, window))
    close(attended_after(q, k, v, past, window), out[:, past:], LAYER)


@pytest.mark.parametrize("new", [5, 11])
def test_padding_before_a_prompt_is_not_seen(new: int) -> None:
    past, window, pads = 3, 4, np.array([0, 2, 5], np.int32)
    q, k, v = inputs(3, past + new, 2, 2)
    out = attended_after(q, k, v, past, window, pads)
    seen = reference.seen(past + new, window) & (np.arange(past + new) >= pads[:, None, None])
    for b, pad in enumerate(pads):
        first = max(pad, past)  # queries that are padding themselves mean nothing, but stay finite
        row = slice(b, b + 1)
        whole = expected(q[row, first:], k[row], v[row], seen[row, first:])
        close(out[row, first - past :], whole, LAYER)
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize("length", [8, 20, 21])
@pytest.mark.parametrize("segmented", [False, True])
def test_query_blocks_equal_the_loop(monkeypatch: pytest.MonkeyPatch, length: int, segmented: bool) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 7)
    q, k, v = inputs(2, length, 2, 2)
    segments = documents(2, length) if segmented else None
    out = jax.jit(lambda *row: in_row(*row))(q, k, v, segments)  # traced anew, with this size of a block
    close(out, expected(q, k, v, reference.seen(length, None, segments)), LAYER)


CUTS = {"causal_blocks": {}, "query_blocks": {"QUERY_BLOCK": 3}}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("window", [None, 3, 9], ids="window_{}".format)
@pytest.mark.parametrize(("softcap", "sinks"), [(None, False), (1.5, False), (None, True)])
@pytest.mark.parametrize("segmented", [False, True], ids=["row", "packed"])
def test_gradients_in_blocks_equal_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, cut: str, window: int | None, softcap: float | None, sinks: bool, segmented: bool
) -> None:
    q, k, v, sinks_KG = *inputs(2, 17, 2, 2), normal(8, 2, 2) if sinks else None
    weight = normal(7, 2, 17, 2, 2, U)
    segments = documents(2, 17) if segmented else None
    slots = jnp.broadcast_to(jnp.arange(17, dtype=jnp.int32), (2, 17))

    def whole(qkv: Any) -> Any:
        q, k, v, s = qkv
        queries, keys = Queries(q, slots, segments), Keys(k, v, slots, segments)
        return jnp.sum(over_parts(queries, [keys], Rule(0.5, window, softcap), s) * weight)

    def in_blocks(qkv: Any) -> Any:
        q, k, v, s = qkv
        keys, fields = [Keys(k, v, slots[:1], segments)], {"window": window, "softcap": softcap, "sinks_KG": s}
        return jnp.sum(attend(q, keys, slots[0], segments, scale=0.5, **fields) * weight)

    monkeypatch.setattr(ordered, "LEAST_BLOCK", 2)
    for name, size in CUTS[cut].items():
        monkeypatch.setattr(module, name, size)
    of = q, k, v, sinks_KG
    close(jax.jit(jax.grad(in_blocks))(of), jax.jit(jax.grad(whole))(of), GRADIENT)


def test_a_query_that_sees_nothing_gives_no_gradient() -> None:
    q, k, v = inputs(1, 4, 1, 1)
    nowhere = jnp.full((1, 4), -1, jnp.int32)

    def run(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(attend(q, [Keys(k, v, nowhere)], jnp.arange(4), scale=1.0))

    for gradient in jax.grad(run, argnums=(0, 1, 2))(q, k, v):
        assert not np.any(gradient)


# --- memory ----------------------------------------------------------------------------------------------------------


def shapes(length: int, heads: int = 1) -> Any:
    return [jax.ShapeDtypeStruct((1, length, 1, *g, E), jnp.float32) for g in ([heads], [], [])]


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_memory_of_windowed_attention_is_linear_in_length(part: str) -> None:
    window = 64

    def run(q: Any, k: Any, v: Any) -> Any:
        return in_row(q, k, v, window=window)

    function = run if part == "forward" else jax.grad(lambda *qkv: jnp.sum(run(*qkv)), argnums=(0, 1, 2))
    short, long = (largest(function, *shapes(length)) for length in (4096, 8192))
    assert long <= 2 * short
    assert short == 4096 * 2 * window  # the scores; 4096 * 4096 would be 32 times as many


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_query_blocks_never_hold_a_score_of_every_pair(part: str) -> None:
    length = 8 * module.QUERY_BLOCK
    function = in_row
    if part == "backward":
        function = jax.grad(lambda *qkv: jnp.sum(in_row(*qkv)), argnums=(0, 1, 2))
    assert largest(function, *shapes(length)) == module.QUERY_BLOCK * length


def test_grouped_queries_do_not_repeat_keys_and_values() -> None:
    kv_heads, group, dim, new, past = 2, 8, 64, 8, 128
    q = jax.ShapeDtypeStruct((1, new, kv_heads, group, dim), jnp.float32)
    held, fresh = (jax.ShapeDtypeStruct((1, n, kv_heads, dim), jnp.float32) for n in (past, new))

    def run(q: Any, held: Any, fresh: Any) -> Any:
        slots = jnp.arange(past, past + new)
        keys = [Keys(held, held, jnp.arange(past)[None]), Keys(fresh, fresh, slots[None])]
        return attend(q, keys, slots, scale=1.0)

    scores = kv_heads * group * new * past
    assert largest(run, q, held, fresh) == scores < kv_heads * group * past * dim


# --- causality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "block"),
    [(None, 1024), (6, 1024), (3, 1024), (None, 4)],
    ids=["full", "window", "windows", "query_blocks"],
)
def test_no_gradient_flows_from_an_output_to_a_later_token(
    monkeypatch: pytest.MonkeyPatch, window: int | None, block: int
) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", block)
    length = 11
    q, k, v = (x[0] for x in inputs(1, length, 1, 1))

    def outputs(qkv_LX: Any) -> Any:  # one row for each token: all that attention may know of it
        q, k, v = jnp.split(qkv_LX[None, :, None], [E, 2 * E], axis=-1)
        return jnp.sum(in_row(q[..., None, :], k, v, window=window), axis=(0, 2, 3, 4))

    jacobian_LLX = jax.jit(jax.jacrev(outputs))(np.concatenate([q[:, 0, 0], k[:, 0], v[:, 0]], axis=-1))
    depends_LL = np.any(np.asarray(jacobian_LLX) != 0, axis=-1)
    np.testing.assert_array_equal(depends_LL, reference.seen(length, window)[0])


# --- the layer -------------------------------------------------------------------------------------------------------

LAYERS = {
    "plain": Attention(heads=4, kv_heads=2, head_dim=8),
    "rope_and_bias": Attention(heads=4, kv_heads=4, head_dim=8, rope=Rope(dim=8), bias="qkv"),
    "partial_rope_and_output_bias": Attention(heads=4, kv_heads=2, head_dim=8, rope=Rope(dim=4), bias="o"),
    "qk_norm_of_heads": Attention(heads=4, kv_heads=2, head_dim=8, rope=Rope(dim=8), qk_norm=QKNorm()),
    "qk_norm_of_width": Attention(
        heads=4, kv_heads=2, head_dim=8, rope=Rope(dim=8), qk_norm=QKNorm(norm=RMSNorm(eps=1e-5), over="width")
    ),
    "qk_norm_after_rope": Attention(heads=4, kv_heads=2, head_dim=8, rope=Rope(dim=8), qk_norm=QKNorm(after_rope=True)),
    "qk_layer_norm": Attention(heads=4, kv_heads=2, head_dim=8, qk_norm=QKNorm(norm=LayerNorm())),
    "qk_l2_norm": Attention(heads=4, kv_heads=2, head_dim=8, qk_norm=QKNorm(norm=L2Norm())),
    "gate": Attention(heads=4, kv_heads=2, head_dim=8, gate=True),
    "narrow_scaled_values": Attention(
        heads=4, kv_heads=2, head_dim=8, values=Values(dim=6, scale=0.7), bias="qkv", gate=True
    ),
    "sinks": Attention(heads=4, kv_heads=2, head_dim=8, rope=Rope(dim=8), scores=Scores(sinks=True)),
    "sinks_in_windows": Attention(heads=4, kv_heads=2, head_dim=8, window=3, scores=Scores(sinks=True)),
    "chunks": ChunkedAttention(heads=4, kv_heads=2, head_dim=8, rope=Rope(dim=8), window=3),
    "temperature": Attention(
        heads=4, kv_heads=2, head_dim=8, scores=Scores(temperature=Temperature(length=3, strength=2.0, first=1))
    ),
    "gemma2_local": Attention(
        heads=4, kv_heads=2, head_dim=8, rope=Rope(dim=8), window=3, scores=Scores(scale=0.2, softcap=2.0)
    ),
}


def context(positions: Any, segments: Any = None) -> Context:
    length = positions.shape[1]
    tokens = jnp.zeros(positions.shape, int)
    return Context(jnp.asarray(positions), segments, tokens, jnp.arange(length, dtype=jnp.int32), None)


def random_layer(spec: Attention, x: Any, positions: Any) -> tuple[Any, Any]:
    shell = spec.shell(Execution())
    shapes = jax.eval_shape(lambda key: shell.init(key, x, context(positions), None), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes["params"])
    params = jax.tree.unflatten(
        tree, [0.4 * normal(i, *leaf.shape) + (leaf.ndim == 1) for i, leaf in enumerate(leaves)]
    )
    apply = jax.jit(lambda params, x, positions: shell.apply({"params": params}, x, context(positions), None)[0])
    return apply, params


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_equals_the_formula(name: str) -> None:
    x, positions = normal(0, 2, 7, 16), np.stack([np.arange(7), np.arange(3, 10)]).astype(np.int32)
    apply, params = random_layer(LAYERS[name], x, positions)
    y = reference.attention(LAYERS[name], params, x.astype(np.float64), positions)
    close(apply(params, x, positions), y, LAYER)


def test_without_rope_positions_do_not_matter() -> None:
    x, near = normal(0, 1, 7, 16), np.arange(7, dtype=np.int32)[None]
    far = near**2
    apply, params = random_layer(LAYERS["plain"], x, near)
    np.testing.assert_array_equal(apply(params, x, far), apply(params, x, near))
    apply, params = random_layer(LAYERS["rope_and_bias"], x, near)
    assert np.max(np.abs(apply(params, x, far) - apply(params, x, near))) > 0.01


# --- the spec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 4, 9, 12])
def test_mean_keys_of_chunks_counts_each_chunk(length: int) -> None:
    assert ChunkedAttention(heads=1, kv_heads=1, head_dim=2, window=4).mean_keys(length) == pytest.approx(
        sum(t % 4 + 1 for t in range(length)) / length
    )


@pytest.mark.parametrize("window", [None, 1, 4, 9, 20])
def test_mean_keys_counts_what_the_mask_lets_through(window: int | None) -> None:
    assert mean_keys(9, window) == pytest.approx(reference.seen(9, window).sum() / 9)


def test_a_window_allocates_its_slots_and_never_more_than_the_length() -> None:
    spec = Attention(heads=4, kv_heads=2, head_dim=8, window=16)
    slots = [spec.cache(3, length, jnp.bfloat16)["k_BKSE"].shape for length in (8, 16, 1000)]
    assert slots == [(3, 2, 8, 8), (3, 2, 16, 8), (3, 2, 16, 8)]
    full = Attention(heads=4, kv_heads=2, head_dim=8).cache(3, 1000, jnp.bfloat16)
    assert {name: leaf.shape for name, leaf in full.items()} == dict.fromkeys(("k_BKSE", "v_BKSE"), (3, 2, 1000, 8))


def test_shorter_windows_cost_fewer_flops() -> None:
    costs = [Attention(heads=4, kv_heads=2, head_dim=8, window=w).flops(64) for w in (1, 8, 63, 64, None)]
    assert all(a < b for a, b in pairwise(costs[:4]))
    assert costs[3] == costs[4]
