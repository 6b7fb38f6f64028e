"""The grouped product of grouped.py as Pallas-Triton kernels for GPUs.

Every block of rows finds its matrix by index inside the kernel (MegaBlocks, Gale et al. 2022), so memory is that of
the operands and results alone: `lax.ragged_dot` on CUDA makes an array of [groups, rows, width]. A group's weight
gradient is summed in registers over the blocks of that group, which lie one after the other: no atomics, hence the
same bits each time.

Dimensions: T tokens, K choices a token, D width, P padded rows, N blocks, X groups (experts), F in, G out."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from .execution import KEPT
from .grouped import Plan, collect, plan, spread

MOST_ROWS = 128
TILE = 128
"""Columns of a result's tile; with as many rows, it fills half the registers of 8 warps in float32."""

DEPTH = 64
"""Elements of the contracted dimension that a kernel multiplies at a time."""

ALIGNED = 16
"""What every dimension of a tensor core's operand is a multiple of."""


def block_size(assignments: int, groups: int) -> int:
    """Rows a block on GPU: half a mean group, as elsewhere, but between 16, the least a tensor core takes, and 128."""
    half = max(assignments // groups, 1).bit_length() - 2
    return int(min(MOST_ROWS, max(ALIGNED, 2 ** max(half, 0))))


def mix_gated(
    x_TD: jax.Array,
    experts_TK: jax.Array,
    weights_TK: jax.Array,
    params: tuple[jax.Array, ...],
    hidden: Callable[[jax.Array, jax.Array], jax.Array],
    interpret: bool = False,
    expected: int | None = None,
) -> jax.Array:
    """The sum over a token's choices of weight * hidden(x gate, x up) down of the chosen expert: [T, D].

    experts_TK: int32, which expert; X or more for none. expected: how many are likely to be of some, None for all.
    params: gate and up [X, F, D], down [X, D, F]; then, of experts with biases, theirs [X, F], [X, F], [X, D].
    interpret: as of `grouped_matmul`. Gradients go to x, the weights and the parameters."""
    gate_XFD, up_XFD, down_XDF, *biases = params
    block = block_size(experts_TK.size if expected is None else expected, gate_XFD.shape[0])
    places = plan(experts_TK, gate_XFD.shape[0], block)
    x_PD = spread(x_TD, places)
    gate_PF = grouped_matmul(x_PD, gate_XFD, places, block, interpret)
    up_PF = grouped_matmul(x_PD, up_XFD, places, block, interpret)
    if biases:
        gate_PF, up_PF = _add(gate_PF, biases[0], places, block), _add(up_PF, biases[1], places, block)
    y_PD = grouped_matmul(hidden(gate_PF, up_PF), down_XDF, places, block, interpret)
    y_PD = _add(y_PD, biases[2], places, block) if biases else y_PD
    weights_P = weights_TK.reshape(-1).at[places.row_P].get(mode="fill", fill_value=0)
    return collect(y_PD * weights_P[:, None].astype(y_PD.dtype), places)


def _add(y_PG: jax.Array, bias_XG: jax.Array, places: Plan, block: int) -> jax.Array:
    """Each block of rows plus its group's bias, whose gradient is a sum in float32."""
    bias_NG = bias_XG.astype(jnp.float32)[places.group_N]
    return y_PG + jnp.repeat(bias_NG, block, axis=0).astype(y_PG.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def grouped_matmul(x_PF: jax.Array, w_XGF: jax.Array, places: Plan, block: int, interpret: bool = False) -> jax.Array:
    """Each block of rows times its group's matrix: [P, G], in x's dtype, summed in float32. Rows of unused blocks are
    zero.

    block: a power of two, at least 16. interpret: run the kernels as plain JAX, on any platform and slowly, to test
    them. Raises ValueError for a block that the kernels cannot take."""
    if block < ALIGNED or block & (block - 1):
        raise ValueError(f"block is {block}: the GPU kernels take a power of two from {ALIGNED} on")
    return _product(x_PF, w_XGF, places, block, transposed=True, interpret=interpret)


def _forward(
    x_PF: jax.Array, w_XGF: jax.Array, places: Plan, block: int, interpret: bool
) -> tuple[jax.Array, tuple[Any, ...]]:
    return checkpoint_name(grouped_matmul(x_PF, w_XGF, places, block, interpret), KEPT), (x_PF, w_XGF, places)


def _backward(
    block: int, interpret: bool, saved: tuple[Any, ...], dy_PG: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x_PF, w_XGF, places = saved
    dx_PF = _product(dy_PG, w_XGF, places, block, transposed=False, interpret=interpret)
    return dx_PF, _weight_gradient(dy_PG, x_PF, w_XGF, places, block, interpret), None


grouped_matmul.defvjp(_forward, _backward)


# --- rows times matrices ---------------------------------------------------------------------------------------------


def _product(
    x_PF: jax.Array, w: jax.Array, places: Plan, block: int, *, transposed: bool, interpret: bool
) -> jax.Array:
    """[P, F] times the matrices w [X, F, G], or [X, G, F] if transposed: [P, G]."""
    outputs = w.shape[1 if transposed else 2]
    x_PF, w = _aligned(x_PF, 1), _aligned(w, 1, 2)
    rows, inputs = x_PF.shape
    columns = w.shape[1 if transposed else 2]
    tile, depth = _tile(columns, TILE), _tile(inputs, DEPTH)
    y_PG: jax.Array = pl.pallas_call(
        partial(_product_kernel, depth=depth, transposed=transposed),
        grid=(columns // tile, rows // block),
        in_specs=[_whole(places.group_N), _whole(places.blocks[None]), _row_block(block, inputs), _whole(w)],
        out_specs=pl.BlockSpec((block, tile), lambda g, n: (n, g)),
        out_shape=jax.ShapeDtypeStruct((rows, columns), x_PF.dtype),
        compiler_params=triton.CompilerParams(num_warps=8 if block * tile > 64 * 64 else 4, num_stages=3),
        interpret=interpret,
        name="grouped_product",
    )(places.group_N, places.blocks[None], x_PF, w)
    return y_PG[:, :outputs]


def _product_kernel(
    group_ref: Any, blocks_ref: Any, x_ref: Any, w_ref: Any, y_ref: Any, *, depth: int, transposed: bool
) -> None:
    """One tile of the result: its block's rows times the columns of its group's matrix."""
    g, n = pl.program_id(0), pl.program_id(1)
    tile = y_ref.shape[1]
    group, columns = group_ref[n], pl.ds(g * tile, tile)

    def step(i: jax.Array, y: jax.Array) -> jax.Array:
        inputs = pl.ds(i * depth, depth)
        w = w_ref[group, columns, inputs].T if transposed else w_ref[group, inputs, columns]
        return y + jnp.dot(x_ref[:, inputs], w, preferred_element_type=jnp.float32)

    steps = jnp.minimum(jnp.maximum(blocks_ref[0] - n, 0), 1) * (x_ref.shape[1] // depth)  # none for an unused block
    y_ref[...] = jax.lax.fori_loop(0, steps, step, jnp.zeros(y_ref.shape, jnp.float32)).astype(y_ref.dtype)


# --- the gradient of the matrices ------------------------------------------------------------------------------------


def _weight_gradient(
    dy_PG: jax.Array, x_PF: jax.Array, w_XGF: jax.Array, places: Plan, block: int, interpret: bool
) -> jax.Array:
    """For each group the sum over its rows of dy's outer product with x: [X, G, F], in w's dtype."""
    groups, outputs, inputs = w_XGF.shape
    dy_PG, x_PF = _aligned(dy_PG, 1), _aligned(x_PF, 1)
    tile_G, tile_F = _tile(dy_PG.shape[1], TILE), _tile(x_PF.shape[1], TILE)
    # The blocks of a group lie one after the other, and the groups in order; those not in use come last.
    blocks_X = jnp.arange(groups + 1, dtype=jnp.int32)
    starts_X1 = jnp.minimum(jnp.searchsorted(places.group_N, blocks_X).astype(jnp.int32), places.blocks)
    dw_XGF: jax.Array = pl.pallas_call(
        partial(_weight_gradient_kernel, block=block, depth=min(block, DEPTH)),
        grid=(x_PF.shape[1] // tile_F, dy_PG.shape[1] // tile_G, groups),
        in_specs=[
            _whole(starts_X1),
            pl.BlockSpec((dy_PG.shape[0], tile_G), lambda f, g, x: (0, g)),
            pl.BlockSpec((x_PF.shape[0], tile_F), lambda f, g, x: (0, f)),
        ],
        out_specs=pl.BlockSpec((None, tile_G, tile_F), lambda f, g, x: (x, g, f)),
        out_shape=jax.ShapeDtypeStruct((groups, dy_PG.shape[1], x_PF.shape[1]), w_XGF.dtype),
        compiler_params=triton.CompilerParams(num_warps=8 if tile_F * tile_G > 64 * 64 else 4, num_stages=3),
        interpret=interpret,
        name="grouped_weight_gradient",
    )(starts_X1, dy_PG, x_PF)
    return dw_XGF[:, :outputs, :inputs]


def _weight_gradient_kernel(starts_ref: Any, dy_ref: Any, x_ref: Any, dw_ref: Any, *, block: int, depth: int) -> None:
    """One tile of one group's matrix, over that group's rows."""
    group, per_block = pl.program_id(2), block // depth

    def step(i: jax.Array, dw: jax.Array) -> jax.Array:
        rows = pl.ds(i * depth, depth)
        return dw + jnp.dot(dy_ref[rows, :].T, x_ref[rows, :], preferred_element_type=jnp.float32)

    first, end = starts_ref[group] * per_block, starts_ref[group + 1] * per_block
    dw_ref[...] = jax.lax.fori_loop(first, end, step, jnp.zeros(dw_ref.shape, jnp.float32)).astype(dw_ref.dtype)


# --- tiles -----------------------------------------------------------------------------------------------------------


def _tile(size: int, most: int) -> int:
    """The largest power of two up to `most` that divides the size, which is aligned."""
    return math.gcd(size, most)


def _aligned(x: jax.Array, *axes: int) -> jax.Array:
    """Zeros appended to these axes up to a multiple of 16; those of published models need none."""
    missing = [-size % ALIGNED if axis in axes else 0 for axis, size in enumerate(x.shape)]
    return jnp.pad(x, [(0, m) for m in missing]) if any(missing) else x


def _whole(x: jax.Array) -> pl.BlockSpec:
    """All of an array in every program, which picks by index."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def _row_block(block: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((block, width), lambda g, n: (n, 0))
