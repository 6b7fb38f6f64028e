"""Rows find their matrix whatever the groups look like, forward and backward, and none of it grows with the number of
matrices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.execution import Execution
from archzoo.layers.expert import GatedExpert
from archzoo.layers.grouped import AT_ONCE, collect, mix, plan, room, spread
from archzoo.layers.ways import Tokens, grouped

from . import reference
from .conftest import BFLOAT16, GRADIENT, HALF, LAYER, close, largest, normal

D, F = 8, 6


def distinct(seed: int, tokens: int, choices: int, among: list[int]) -> Any:
    """Each token's choices: distinct groups out of those named."""
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(among)[:choices] for _ in range(tokens)], np.int32)


CASES: dict[str, tuple[Any, int]] = {
    "balanced": (np.arange(32, dtype=np.int32).reshape(16, 2) % 4, 4),
    "empty_experts": (distinct(0, 16, 2, [1, 2, 5]), 7),
    "unaligned": (distinct(1, 23, 3, [0, 1, 2, 3, 4]), 5),
    "all_to_one": (np.full((37, 1), 2, np.int32), 4),
    "single_token": (np.array([[3, 0]], np.int32), 4),
    "more_experts_than_assignments": (distinct(2, 3, 2, list(range(50))), 50),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, int]:
    return CASES[request.param]


# --- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("home", "block"), [(0, 1), (0, 8), (2, 4), (4, 4), (16, 8)])
def test_every_assignment_has_one_place_at_home_or_in_a_block_of_its_group(
    case: tuple[Any, int], home: int, block: int
) -> None:
    groups, count = case
    p = jax.tree.map(np.asarray, jax.jit(plan, static_argnums=(1, 2, 3))(groups, count, block, home))
    flat = groups.reshape(-1)
    placed = p.row_P[p.row_P < len(flat)]
    np.testing.assert_array_equal(np.sort(placed), np.arange(len(flat)))
    np.testing.assert_array_equal(p.row_P[p.place_TK.reshape(-1)], np.arange(len(flat)))
    sizes = np.bincount(flat, minlength=count)
    homes, blocks = p.row_P[: count * home].reshape(count, home), p.row_P[count * home :].reshape(-1, block)
    assert len(blocks) == len(p.group_N)
    for group, rows in enumerate(homes):
        real = rows[rows < len(flat)]
        assert np.all(flat[real] == group)
        assert len(real) == min(sizes[group], home)
        assert np.all(np.diff(real) > 0)  # in the order of the tokens
    for n, rows in enumerate(blocks):
        real = rows[rows < len(flat)]
        assert np.all(flat[real] == p.group_N[n])
        assert (len(real) > 0) == (n < p.blocks)
        assert np.all(np.diff(real) > 0)
    assert p.blocks == sum(-(-max(size - home, 0) // block) for size in sizes)


@pytest.mark.parametrize(
    ("tokens", "choices", "groups", "sizes"),
    [
        (1, 4, 32, (0, 1)),
        (8, 4, 32, (0, 8)),
        (1024, 4, 32, (160, 128)),
        (1024, 8, 4096, (16, 16)),
        (10**6, 1, 4, (312512, 256)),
    ],
)
def test_a_home_holds_a_quarter_more_than_a_mean_group(
    tokens: int, choices: int, groups: int, sizes: tuple[int, int]
) -> None:
    assert room(tokens, choices, groups) == sizes


def test_spread_and_collect_are_transposes() -> None:
    groups, count = CASES["unaligned"]
    p = jax.jit(plan, static_argnums=(1, 2))(groups, count, 4)
    x, y = jnp.asarray(normal(0, len(groups), D)), jnp.asarray(normal(1, len(p.row_P), D))
    spread_x, collected_y = jax.jit(spread)(x, p), jax.jit(collect)(y, p)
    close(np.vdot(spread_x, y), np.vdot(x, collected_y), GRADIENT)
    close(jax.jit(collect)(spread_x, p), groups.shape[1] * x, LAYER)


# --- any function ----------------------------------------------------------------------------------------------------


def product(w_DF: Any, x_RD: Any, weight_R1: Any) -> Any:
    return jnp.dot(x_RD, w_DF) * weight_R1


@pytest.mark.parametrize("homes", [None, (0, 4), (2, 4), (16, 4)], ids="home_and_block_{}".format)
def test_a_mix_and_its_gradients_equal_the_loop(
    monkeypatch: pytest.MonkeyPatch, case: tuple[Any, int], homes: tuple[int, int] | None
) -> None:
    if homes is not None:
        monkeypatch.setattr("archzoo.layers.grouped.room", lambda *sizes: homes)
    groups, count = case
    w, x, weights = normal(1, count, D, F), normal(0, len(groups), D), normal(3, *groups.shape)
    dy = normal(2, len(groups), F)

    @jax.jit
    def run(*at: Any) -> Any:
        y, pull = jax.vjp(lambda *at: mix(product, *at, jnp.asarray(groups)), *at)
        return y, pull(jnp.asarray(dy))

    y, (dw, dx, dweights) = run(w, x, weights)
    w, x, weights, dy = (a.astype(np.float64) for a in (w, x, weights, dy))
    each = np.einsum("td,tkdf->tkf", x, w[groups])
    close(y, np.einsum("tkf,tk->tf", each, weights), LAYER)
    close(dweights, np.einsum("tf,tkf->tk", dy, each), GRADIENT)
    close(dx, np.einsum("tf,tkdf,tk->td", dy, w[groups], weights), GRADIENT)
    expected = np.zeros_like(w)
    np.add.at(expected, groups, np.einsum("td,tf,tk->tkdf", x, dy, weights))
    close(dw, expected, GRADIENT)


# --- the dispatch ----------------------------------------------------------------------------------------------------


def moe_inputs(groups: Any, count: int) -> dict[str, Any]:
    shape = groups.shape
    return {
        "x": normal(0, shape[0], D),
        "weights": np.abs(normal(1, *shape)),
        "gate": 0.5 * normal(2, count, F, D),
        "up": 0.5 * normal(3, count, F, D),
        "down": 0.5 * normal(4, count, D, F),
    }


def dispatched(groups: Any, at: dict[str, Any]) -> Any:
    """The whole grouped dispatch as a function of everything that has a gradient."""
    tokens = Tokens(at["x"][None], jnp.ones((1, len(groups)), bool), at["weights"][None], groups[None])
    y, dropped = grouped(GatedExpert(), (at["gate"], at["up"], at["down"]), tokens, Execution())
    return y[0], dropped


def test_the_dispatch_and_all_its_gradients_equal_the_loop(case: tuple[Any, int]) -> None:
    groups, count = case
    at, dy = moe_inputs(groups, count), normal(9, len(groups), D)

    @jax.jit
    def run(at: Any) -> Any:
        y, pull, dropped = jax.vjp(partial(dispatched, jnp.asarray(groups)), at, has_aux=True)
        return y, pull(jnp.asarray(dy))[0], dropped

    y, gradients, dropped = run(at)
    exact = {name: a.astype(np.float64) for name, a in at.items()}
    order = (exact[name] for name in ("gate", "up", "down"))
    close(y, reference.experts_sum(exact["x"], groups, exact["weights"], *order), LAYER)
    order = (exact[name] for name in ("gate", "up", "down"))
    expected = reference.experts_gradients(dy.astype(np.float64), exact["x"], groups, exact["weights"], *order)
    close(gradients, expected, GRADIENT)
    assert dropped == 0


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_no_array_grows_with_experts_times_rows(part: str) -> None:
    tokens, choices, count = 256, 2, 64
    groups = jax.ShapeDtypeStruct((tokens, choices), jnp.int32)
    at = jax.eval_shape(lambda: moe_inputs(np.zeros((tokens, choices), np.int32), count))

    def run(groups: Any, at: Any) -> Any:
        return jnp.sum(dispatched(groups, at)[0])

    size = largest(run if part == "forward" else jax.grad(run, argnums=1), groups, at)
    home, block = room(tokens, choices, count)
    padded = count * home + (tokens * choices // block + min(count, tokens * choices) + AT_ONCE) * block
    assert size <= max(padded * D, count * D * F) < tokens * choices * count


def test_bfloat16_weight_gradients_of_a_long_group_keep_their_small_parts() -> None:
    """Thousands of rows to one expert: a sum over its blocks in bfloat16 would stop growing."""
    rows = 8192
    groups, ones = jnp.zeros((rows, 1), jnp.int32), jnp.ones((rows, 1), jnp.bfloat16)

    def loss(w: Any) -> Any:
        return jnp.sum(mix(product, w, ones, ones, groups).astype(jnp.float32))

    dw = jax.jit(jax.grad(loss))(jnp.ones((512, 1, 1), jnp.bfloat16))
    close(dw[0], np.full((1, 1), float(rows)), HALF)


def test_the_dispatch_in_bfloat16_is_near_float32() -> None:
    groups, count = CASES["unaligned"]
    at = moe_inputs(groups, count)
    run = jax.jit(lambda at: dispatched(jnp.asarray(groups), at)[0])
    half = run(jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), at))
    assert half.dtype == jnp.bfloat16
    close(half, run(at), BFLOAT16)
