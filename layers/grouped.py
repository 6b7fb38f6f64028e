"""Products of groups of rows with one matrix each, at a cost that does not depend on the number of matrices.

Rows are sorted by group and each group padded to whole blocks, as MegaBlocks does (Gale et al. 2022); a loop over the
blocks in use multiplies each with its group's matrix. `lax.ragged_dot` computes every group for every row on CPU and
GPU.

Dimensions: T tokens, K choices a token, A = T * K assignments, P padded rows, N blocks, X groups (experts), F in, G
out."""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Plan(NamedTuple):
    """Where each assignment's row lies. row_P: the assignment in each padded row, A for none; place_TK: its inverse.

    group_N: the matrix of each block; blocks: how many are in use.
    """

    row_P: jax.Array
    place_TK: jax.Array
    group_N: jax.Array
    blocks: jax.Array


def block_size(assignments: int, groups: int) -> int:
    """Rows a block: half a mean group, so that padding stays small, between 8 and 128, so that products stay
    efficient.
    """
    mean = max(assignments // groups, 1)
    return int(min(128, max(8, 2 ** (mean.bit_length() - 1) // 2)))


def plan(groups_TK: jax.Array, groups: int, block: int) -> Plan:
    """Sorts assignments (int32 group of each) into blocks of `block` rows; a group of none takes no block."""
    tokens, choices = groups_TK.shape
    count = tokens * choices
    most_blocks = count // block + min(groups, count)
    flat_A = groups_TK.reshape(-1)
    order_A = jnp.argsort(flat_A, stable=True).astype(jnp.int32)
    sizes_X = jnp.sum(flat_A[:, None] == jnp.arange(groups), axis=0, dtype=jnp.int32)
    blocks_X = -(-sizes_X // block)
    ends_X = jnp.cumsum(blocks_X)
    shift_X = (ends_X - blocks_X) * block - (jnp.cumsum(sizes_X) - sizes_X)
    place_A = jnp.arange(count, dtype=jnp.int32) + shift_X[flat_A[order_A]]
    row_P = jnp.full(most_blocks * block, count, jnp.int32).at[place_A].set(order_A, unique_indices=True)
    place_TK = jnp.zeros(count, jnp.int32).at[order_A].set(place_A, unique_indices=True).reshape(tokens, choices)
    group_N = jnp.searchsorted(ends_X, jnp.arange(most_blocks), side="right").astype(jnp.int32)
    return Plan(row_P, place_TK, jnp.minimum(group_N, groups - 1), ends_X[-1])


@jax.custom_vjp
def spread(x_TD: jax.Array, plan: Plan) -> jax.Array:
    """Each token's row to the places of its choices: [P, D], zero where there is none."""
    choices = plan.place_TK.shape[1]
    return x_TD.at[plan.row_P // choices].get(mode="fill", fill_value=0)


@jax.custom_vjp
def collect(y_PD: jax.Array, plan: Plan) -> jax.Array:
    """The sum of the rows of each token's choices, the transpose of `spread`: [T, D]."""
    total: jax.Array = reduce(jax.lax.add, (y_PD[plan.place_TK[:, k]] for k in range(plan.place_TK.shape[1])))
    return total


# Both ways are gathers: left to itself, the gradient of a gather is a scatter, which no platform runs as well.
spread.defvjp(lambda x, p: (spread(x, p), p), lambda p, dy: (collect(dy, p), None))
collect.defvjp(lambda y, p: (collect(y, p), p), lambda p, dx: (spread(dx, p), None))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul(x_PF: jax.Array, w_XFG: jax.Array, plan: Plan, block: int) -> jax.Array:
    """Each block of rows times its group's matrix: [P, G]. Rows of unused blocks are zero."""

    def step(i: jax.Array, y_PG: jax.Array) -> jax.Array:
        product = jnp.dot(_rows(x_PF, i, block), w_XFG[plan.group_N[i]])
        return jax.lax.dynamic_update_slice(y_PG, product, (i * block, 0))

    zeros_PG = jnp.zeros((x_PF.shape[0], w_XFG.shape[2]), x_PF.dtype)
    y_PG: jax.Array = jax.lax.fori_loop(0, plan.blocks, step, zeros_PG)
    return y_PG


def _forward(x_PF: jax.Array, w_XFG: jax.Array, plan: Plan, block: int) -> tuple[jax.Array, tuple[Any, ...]]:
    return grouped_matmul(x_PF, w_XFG, plan, block), (x_PF, w_XFG, plan)


def _backward(block: int, saved: tuple[Any, ...], dy_PG: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x_PF, w_XFG, plan = saved

    def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dx_PF, dw_XFG = carry
        group, dy = plan.group_N[i], _rows(dy_PG, i, block)
        dx = jax.lax.dot_general(dy, w_XFG[group], (((1,), (1,)), ((), ())))
        dw = jax.lax.dot_general(
            _rows(x_PF, i, block), dy, (((0,), (0,)), ((), ())), preferred_element_type=dw_XFG.dtype
        )
        return (
            jax.lax.dynamic_update_slice(dx_PF, dx, (i * block, 0)),
            jax.lax.dynamic_update_slice(dw_XFG, (dw_XFG[group] + dw)[None], (group, 0, 0)),
        )

    # A group's sum over its blocks is float32: in bfloat16 it stops growing after 256 of them.
    start = jnp.zeros_like(x_PF), jnp.zeros_like(w_XFG, dtype=jnp.float32)
    dx_PF, dw_XFG = jax.lax.fori_loop(0, plan.blocks, step, start)
    return dx_PF, dw_XFG.astype(w_XFG.dtype), None


grouped_matmul.defvjp(_forward, _backward)


def _rows(x: jax.Array, i: jax.Array, block: int) -> jax.Array:
    return jax.lax.dynamic_slice(x, (i * block, np.int32(0)), (block, x.shape[1]))
