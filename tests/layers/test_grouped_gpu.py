"""The GPU's grouped product, interpreted, equals the loop forward and backward whatever the groups look like; it lowers
for a GPU where there is none, and makes nothing that grows with matrices times rows."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from archzoo.layers.bounded import Clamped
from archzoo.layers.execution import REMAT
from archzoo.layers.expert import GatedExpert
from archzoo.layers.grouped import Plan, mix, plan, spread
from archzoo.layers.grouped_gpu import block_size, grouped_matmul, mix_gated
from archzoo.layers.mlp import hidden

from . import reference
from .conftest import GRADIENT, HALF, LAYER, close, equations, largest, normal

BLOCK, F, G = 16, 160, 40
"""Several steps and several tiles a product, and a width that is no multiple of a tile."""

GROUPS = 5
CASES: dict[str, Any] = {
    "even": np.arange(40) % GROUPS,
    "empty_groups": np.array([1, 3])[np.arange(40) % 2],
    "all_to_the_last": np.full(40, GROUPS - 1),
    "odd_sizes": np.repeat(np.arange(GROUPS), (1, 16, 17, 0, 6)),
    "one_over_a_block": np.repeat(np.arange(GROUPS), (0, 33, 0, 7, 0)),
}
"""The group of each of 40 rows."""


def exact(x: Any, w: Any, dy: Any, groups: Any) -> Any:
    """float64 y, dx, dw: one row at a time."""
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    y, dx, dw = np.zeros((len(x), w.shape[1])), np.zeros_like(x), np.zeros_like(w)
    for t, group in enumerate(groups):
        y[t], dx[t] = w[group] @ x[t], dy[t] @ w[group]
        dw[group] += np.outer(dy[t], x[t])
    return y, dx, dw


@jax.jit
def interpreted(x_TF: Any, w_XGF: Any, dy_TG: Any, groups_T: Any) -> Any:
    """y, dx, dw of rows that are their own assignments."""
    p = plan(groups_T[:, None], GROUPS, BLOCK)

    def product(x: Any, w: Any) -> Any:
        return grouped_matmul(spread(x, p), w, p, BLOCK, True)[p.place_TK[:, 0]]

    y, pull = jax.vjp(product, x_TF, w_XGF)
    return y, *pull(dy_TG)


@pytest.mark.parametrize("case", CASES)
def test_the_product_and_its_gradients_equal_the_loop(case: str) -> None:
    groups = CASES[case].astype(np.int32)
    x, w, dy = normal(0, 40, F), normal(1, GROUPS, G, F), normal(2, 40, G)
    close(interpreted(x, w, dy, groups), exact(x, w, dy, groups), LAYER)


def test_gated_experts_and_all_their_gradients_equal_the_loop() -> None:
    tokens, choices, width, ffn = 24, 2, 16, 48
    experts = np.stack([np.random.default_rng(t).permutation([0, 1, 3, 4])[:choices] for t in range(tokens)])
    at = {"x": normal(0, tokens, width), "weights": np.abs(normal(1, tokens, choices))}
    at |= {"gate": normal(2, GROUPS, ffn, width), "up": normal(3, GROUPS, ffn, width)}
    at |= {"down": normal(4, GROUPS, width, ffn)}
    dy = normal(5, tokens, width)

    @jax.jit
    def run(at: Any) -> Any:
        def mixed(at: Any) -> Any:
            matrices = at["gate"], at["up"], at["down"]
            return mix_gated(at["x"], jnp.asarray(experts), at["weights"], matrices, partial(hidden, "silu"), True)

        y, pull = jax.vjp(mixed, at)
        return y, pull(jnp.asarray(dy))[0]

    y, gradients = run(at)
    f64 = {name: a.astype(np.float64) for name, a in at.items()}
    arguments = f64["x"], experts, f64["weights"], f64["gate"], f64["up"], f64["down"]
    close(y, reference.experts_sum(*arguments), LAYER)
    close(gradients, reference.experts_gradients(dy.astype(np.float64), *arguments), GRADIENT)


def test_experts_with_biases_are_those_of_other_platforms_and_so_are_their_gradients() -> None:
    tokens, choices, width, ffn = 24, 2, 16, 32
    experts = jnp.asarray(
        np.stack([np.random.default_rng(t).permutation([0, 1, 3, 4])[:choices] for t in range(tokens)])
    )
    expert = GatedExpert(activation=Clamped(alpha=1.3, limit=0.8), bias=True)
    sizes = {"X": GROUPS, "F": ffn, "D": width}
    shapes = [[sizes[axis] for axis in name.rpartition("_")[2]] for name, _ in expert.table]
    params = tuple(0.3 * normal(2 + i, *shape) for i, shape in enumerate(shapes))
    at = params, normal(0, tokens, width), np.abs(normal(1, tokens, choices))

    def gradients(function: Any) -> Any:
        def loss(params: Any, x: Any, weights: Any) -> Any:
            y = function(params, x, weights)
            return jnp.sum(y * normal(5, tokens, width)), y

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*at)

    gate = partial(hidden, expert.activation)
    kernels = gradients(lambda params, x, weights: mix_gated(x, experts, weights, params, gate, True))
    close(kernels, gradients(lambda params, x, weights: mix(expert, params, x, weights, experts)), GRADIENT)


def test_bfloat16_is_rounded_once() -> None:
    groups = CASES["odd_sizes"].astype(np.int32)
    arrays = [jnp.asarray(a, jnp.bfloat16) for a in (normal(0, 40, F), normal(1, GROUPS, G, F), normal(2, 40, G))]
    out = interpreted(*arrays, groups)
    assert all(a.dtype == jnp.bfloat16 for a in out)
    close(out, exact(*arrays, groups), HALF)


def test_bfloat16_weight_gradients_of_a_long_group_keep_their_small_parts() -> None:
    rows = 1024
    p = plan(jnp.zeros((rows, 1), jnp.int32), 1, BLOCK)
    ones = jnp.ones((len(p.row_P), 16), jnp.bfloat16)
    product = lambda w: grouped_matmul(ones, w, p, BLOCK, True)[:rows]  # noqa: E731
    _, pull = jax.vjp(product, jnp.ones((1, 16, 16), jnp.bfloat16))
    (dw,) = jax.jit(pull)(jnp.ones((rows, 16), jnp.bfloat16))
    np.testing.assert_array_equal(np.asarray(dw, np.float64), float(rows))


def test_unused_blocks_are_zero_and_count_for_nothing() -> None:
    p = plan(jnp.zeros((20, 1), jnp.int32), GROUPS, BLOCK)
    x, w = jnp.ones((len(p.row_P), F)), jnp.ones((GROUPS, G, F))
    y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, p, BLOCK, True), x, w)
    dx, dw = pull(jnp.ones_like(y))
    used = int(p.blocks) * BLOCK
    assert used < len(y)
    for rows, value in ((np.asarray(y), F), (np.asarray(dx), G)):
        assert np.all(rows[:used] == value)
        assert np.all(rows[used:] == 0)
    assert np.all(dw[0] == used)
    assert np.all(dw[1:] == 0)


def shapes(rows: int, groups: int, inputs: int, outputs: int) -> Any:
    """A product's arguments: x, w and the plan."""
    number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    half = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    places = Plan(number(rows), number(rows, 1), number(rows // 128), number())
    return half(rows, inputs), half(groups, outputs, inputs), places


def both_ways(x: Any, w: Any, places: Plan) -> Any:
    y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, places, 128), x, w)
    return y, pull(y)


def test_nothing_grows_with_matrices_times_rows() -> None:
    rows, groups, inputs, outputs = 4096, 64, 256, 128
    size = largest(both_ways, *shapes(rows, groups, inputs, outputs))
    assert size == max(rows * inputs, groups * inputs * outputs) < rows * groups * min(inputs, outputs)


@pytest.mark.parametrize(("remat", "kernels"), [("none", 3), ("full", 4)])
def test_products_run_again_for_their_gradients_only_where_nothing_is_kept(remat: str, kernels: int) -> None:
    x, w, places = shapes(1024, 4, 128, 128)

    @partial(jax.checkpoint, policy=REMAT[remat])
    def loss(w: Any, x: Any, places: Plan) -> Any:
        return jnp.sum(grouped_matmul(x, w, places, 128) ** 2)

    jaxpr = jax.make_jaxpr(jax.jit(jax.grad(loss, argnums=(0, 1))))(w, x, places)
    assert [e.primitive.name for e in equations(jaxpr.jaxpr)].count("pallas_call") == kernels


def test_the_kernels_lower_for_a_gpu_where_there_is_none() -> None:
    device = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Explicit,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(both_ways).trace(*shapes(4096, 8, 192, 128))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") == 3  # the product, and the gradients of rows and of matrices


@pytest.mark.parametrize(("assignments", "groups", "rows"), [(1, 1, 16), (64, 64, 16), (1024, 16, 32), (10**6, 4, 128)])
def test_a_block_is_half_a_mean_group_and_fits_a_tensor_core(assignments: int, groups: int, rows: int) -> None:
    assert block_size(assignments, groups) == rows


@pytest.mark.parametrize("block", [8, 24])
def test_a_block_that_no_kernel_takes_is_refused(block: int) -> None:
    x, w, places = shapes(48, 2, 16, 16)
    with pytest.raises(ValueError, match=f"block is {block}: .* power of two from 16"):
        jax.eval_shape(lambda x, w, places: grouped_matmul(x, w, places, block), x, w, places)
