"""Rows find their matrix whatever the groups look like, forward and backward, and none of it grows with the number of
matrices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.grouped import block_size, collect, grouped_matmul, plan, spread
from archzoo.layers.moe import Experts, grouped
from archzoo.layers.router import Routing

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


@pytest.mark.parametrize("block", [1, 4, 8])
def test_every_assignment_is_placed_once_in_a_block_of_its_group(case: tuple[Any, int], block: int) -> None:
    groups, count = case
    p = jax.tree.map(np.asarray, jax.jit(plan, static_argnums=(1, 2))(groups, count, block))
    flat = groups.reshape(-1)
    placed = p.row_P[p.row_P < len(flat)]
    np.testing.assert_array_equal(np.sort(placed), np.arange(len(flat)))
    np.testing.assert_array_equal(p.row_P[p.place_TK.reshape(-1)], np.arange(len(flat)))
    for n, rows in enumerate(p.row_P.reshape(-1, block)):
        real = rows[rows < len(flat)]
        assert np.all(flat[real] == p.group_N[n])
        assert (len(real) > 0) == (n < p.blocks)
        assert np.all(np.diff(real) > 0)  # in the order of the tokens
    sizes = np.bincount(flat, minlength=count)
    assert p.blocks == sum(-(-size // block) for size in sizes)


@pytest.mark.parametrize(
    ("assignments", "groups", "rows"), [(1, 1, 8), (64, 64, 8), (1024, 16, 32), (4096, 8, 128), (10**6, 4, 128)]
)
def test_a_block_is_half_a_mean_group_within_bounds(assignments: int, groups: int, rows: int) -> None:
    assert block_size(assignments, groups) == rows


def test_spread_and_collect_are_transposes() -> None:
    groups, count = CASES["unaligned"]
    p = jax.jit(plan, static_argnums=(1, 2))(groups, count, 4)
    x, y = jnp.asarray(normal(0, len(groups), D)), jnp.asarray(normal(1, len(p.row_P), D))
    spread_x, collected_y = jax.jit(spread)(x, p), jax.jit(collect)(y, p)
    close(np.vdot(spread_x, y), np.vdot(x, collected_y), GRADIENT)
    close(jax.jit(collect)(spread_x, p), groups.shape[1] * x, LAYER)


# --- the product -----------------------------------------------------------------------------------------------------


def test_the_product_and_its_gradients_equal_the_loop(case: tuple[Any, int]) -> None:
    groups, count = case
    x, w, dy = normal(0, *groups.shape, D), normal(1, count, D, F), normal(2, *groups.shape, F)

    @jax.jit
    def run(x: Any, w: Any) -> Any:
        """One row an assignment: spread by hand, so that only the product is under test."""
        p = plan(jnp.asarray(groups), count, 4)

        def product(x: Any, w: Any) -> Any:
            rows = x.reshape(-1, D).at[p.row_P].get(mode="fill", fill_value=0)
            return grouped_matmul(rows, w, p, 4)[p.place_TK]

        y, pull = jax.vjp(product, x, w)
        return y, pull(jnp.asarray(dy))

    y, (dx, dw) = run(x, w)
    x, w, dy = (a.astype(np.float64) for a in (x, w, dy))
    close(y, np.einsum("tkd,tkdf->tkf", x, w[groups]), LAYER)
    close(dx, np.einsum("tkf,tkdf->tkd", dy, w[groups]), LAYER)
    expected = np.zeros_like(w)
    np.add.at(expected, groups, np.einsum("tkd,tkf->tkdf", x, dy))
    close(dw, expected, LAYER)


def test_rows_of_unused_blocks_are_zero() -> None:
    p = jax.jit(plan, static_argnums=(1, 2))(jnp.zeros((5, 1), jnp.int32), 4, 2)
    y = np.asarray(jax.jit(grouped_matmul, static_argnums=3)(jnp.ones((len(p.row_P), D)), jnp.ones((4, D, F)), p, 2))
    used = int(p.blocks) * 2
    assert used < len(y)
    assert np.all(y[:used] == D)
    assert np.all(y[used:] == 0)


# --- the dispatch ----------------------------------------------------------------------------------------------------


def moe_inputs(groups: Any, count: int) -> dict[str, Any]:
    shape = groups.shape
    return {
        "x": normal(0, shape[0], D),
        "weights": np.abs(normal(1, *shape)),
        "gate": 0.5 * normal(2, count, D, F),
        "up": 0.5 * normal(3, count, D, F),
        "down": 0.5 * normal(4, count, F, D),
    }


def dispatched(groups: Any, at: dict[str, Any]) -> Any:
    """The whole grouped dispatch as a function of everything that has a gradient."""
    routing = Routing(at["weights"], groups, at["weights"], at["weights"])
    experts = Experts(at["gate"], at["up"], at["down"], jax.nn.silu)
    y, dropped = grouped(at["x"][None], jnp.ones((1, len(groups)), bool), routing, experts, 1.0)
    return y, dropped


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
    padded = tokens * choices + count * block_size(tokens * choices, count)
    assert size <= max(padded * D, count * D * F) < tokens * choices * count


def test_bfloat16_weight_gradients_of_a_long_group_keep_their_small_parts() -> None:
    """Thousands of rows to one expert: a sum over its blocks in bfloat16 would stop growing."""
    rows, block = 8192, block_size(8192, 512)
    groups, w = jnp.zeros((rows, 1), jnp.int32), jnp.ones((1, 1, 1), jnp.bfloat16)

    def loss(w: Any) -> Any:
        p = plan(groups, 1, block)
        return jnp.sum(grouped_matmul(spread(jnp.ones((rows, 1), jnp.bfloat16), p), w, p, block).astype(jnp.float32))

    close(jax.jit(jax.grad(loss))(w), np.full((1, 1, 1), float(rows)), HALF)


def test_the_dispatch_in_bfloat16_is_near_float32() -> None:
    groups, count = CASES["unaligned"]
    at = moe_inputs(groups, count)
    run = jax.jit(lambda at: dispatched(jnp.asarray(groups), at)[0])
    half = run(jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), at))
    assert half.dtype == jnp.bfloat16
    close(half, run(at), BFLOAT16)
