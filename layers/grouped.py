"""A function of rows, with parameters of its own for every group, at a cost that does not depend on how many there are.

Each group owns a home of a quarter more rows than a mean group needs; all homes are computed at once, as one batch.
Rows that find no room at home lie in blocks of one group each, as in MegaBlocks (Gale et al. 2022), and a loop runs
over the blocks in use. So nothing is dropped, and what is computed for nothing is bounded whatever the groups' sizes.
`lax.ragged_dot` computes every group for every row on CPU and GPU.

Dimensions: T tokens, K choices a token, A = T * K assignments, X groups (experts), H rows of a home, R rows of a
block, N blocks, M blocks at once, S = M * R, P = X * H + N * R padded rows, D in, G out."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from .execution import KEPT

Function = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(one group's parameters, a tree of arrays; its rows [R, D]; their weights [R, 1]) -> the weighed results [R, G].

Each row for itself, and zero where the weight is. Compared by value: it is a key of jit's cache.
"""

AT_ONCE = 4
"""Blocks an iteration: enough that XLA's batched products on CPU reach twice the speed of one block's."""


class Plan(NamedTuple):
    """Where each assignment's row lies. row_P: the assignment in each padded row, A for none; place_TK: its inverse.

    The homes come first, then the blocks, sorted by group. group_N: the group of each block; blocks: how many are in
    use.
    """

    row_P: jax.Array
    place_TK: jax.Array
    group_N: jax.Array
    blocks: jax.Array


def room(tokens: int, choices: int, groups: int, expected: int | None = None) -> tuple[int, int]:
    """Rows of a home, and of a block.  expected: how many assignments are likely to have a group, None for all.

    With larger homes more would be computed for nothing; with smaller ones more rows would go through the loop, where
    each costs about twice as much. With few assignments there are no homes, so that only the groups in use are read.
    """
    mean = (tokens * choices if expected is None else expected) // groups
    home = -(-mean * 5 // 4 // 16) * 16 if mean > 1 else 0
    return home, min(tokens, 256, max(16, 2 ** (mean.bit_length() - 1)))


def plan(groups_TK: jax.Array, groups: int, block: int, home: int = 0) -> Plan:
    """Sorts assignments (int32 group of each) into homes and blocks; a group takes no more blocks than it fills.

    One of no group (`groups` or more) has its place beyond all rows."""
    tokens, choices = groups_TK.shape
    count = tokens * choices
    most_blocks = count // block + (0 if home >= block else min(groups, count))
    most_blocks = -(-max(most_blocks, 1) // AT_ONCE) * AT_ONCE
    group_A = jnp.minimum(groups_TK.reshape(-1), groups)
    order_A = _sorted(group_A, groups + 1)
    group_A = group_A[order_A]
    sizes_X = jnp.zeros(groups, jnp.int32).at[group_A].add(1, mode="drop")
    rank_A = jnp.arange(count, dtype=jnp.int32) - (jnp.cumsum(sizes_X) - sizes_X)[group_A]
    blocks_X = -(-jnp.maximum(sizes_X - home, 0) // block)
    ends_X = jnp.cumsum(blocks_X)
    in_block_A = groups * home + (ends_X - blocks_X)[group_A] * block + rank_A - home
    place_A = jnp.where(rank_A < home, group_A * home + rank_A, in_block_A)
    rows = groups * home + most_blocks * block
    place_A = jnp.where(group_A < groups, place_A, rows + jnp.arange(count, dtype=jnp.int32))
    row_P = jnp.full(rows, count, jnp.int32).at[place_A].set(order_A, unique_indices=True, mode="drop")
    place_TK = jnp.zeros(count, jnp.int32).at[order_A].set(place_A, unique_indices=True).reshape(tokens, choices)
    group_N = jnp.sum(ends_X <= jnp.arange(most_blocks)[:, None], axis=1, dtype=jnp.int32)
    return Plan(row_P, place_TK, jnp.minimum(group_N, groups - 1), ends_X[-1])


def _sorted(group_A: jax.Array, groups: int) -> jax.Array:
    """Assignments by group, within a group in their own order."""
    count = group_A.shape[0]
    if groups * count >= 2**31:
        return jnp.argsort(group_A, stable=True).astype(jnp.int32)
    # One integer each sorts in a third of the time of a pair.
    return jnp.sort(group_A * count + jnp.arange(count, dtype=jnp.int32)) % count


@jax.custom_vjp
def spread(x_TD: jax.Array, plan: Plan) -> jax.Array:
    """Each token's row to the places of its choices: [P, D], zero where there is none."""
    token_P = plan.row_P // plan.place_TK.shape[1]
    return jnp.pad(x_TD, ((0, 1), (0, 0))).at[token_P].get(mode="promise_in_bounds")


@jax.custom_vjp
def collect(y_PD: jax.Array, plan: Plan) -> jax.Array:
    """The sum of the rows of each token's choices, the transpose of `spread`: [T, D]. Places beyond y count as zero."""
    parts = (y_PD.at[place_T].get(mode="fill", fill_value=0) for place_T in plan.place_TK.T)
    total: jax.Array = reduce(jax.lax.add, parts)
    return total


# Both ways are gathers: left to itself, the gradient of a gather is a scatter, which no platform runs as well.
spread.defvjp(lambda x, p: (spread(x, p), p), lambda p, dy: (collect(dy, p), None))
collect.defvjp(lambda y, p: (collect(y, p), p), lambda p, dx: (spread(dx, p), None))


def mix(
    function: Function,
    params: Any,
    x_TD: jax.Array,
    weights_TK: jax.Array,
    groups_TK: jax.Array,
    expected: int | None = None,
) -> jax.Array:
    """The sum over each token's choices of function(the group's params, x, weight): [T, G].

    params: a tree of arrays [X, ...]. groups_TK: int32; X or more for no group. expected: as of `room`. Gradients go to
    params, x and weights.
    """
    groups = jax.tree.leaves(params)[0].shape[0]
    tokens, choices = groups_TK.shape
    home, block = room(tokens, choices, groups, expected)
    if not home:
        weights_TK = jnp.where(groups_TK < groups, weights_TK, 0)  # whichever group it reads gives nothing
        return one_by_one(function, params, x_TD, weights_TK, groups_TK)
    homes, places = groups * home, checkpoint_name(plan(groups_TK, groups, block, home), KEPT)
    params, x_TD, weights_TK, y_TG = blocks(function, homes, params, x_TD, weights_TK, places)
    at_home = places._replace(row_P=places.row_P[:homes])
    each = at_home._replace(place_TK=places.place_TK.reshape(-1, 1))
    x_XHD = spread(x_TD, at_home).reshape(groups, home, -1)
    weight_XH1 = spread(weights_TK.reshape(-1, 1), each).reshape(groups, home, 1)
    y_XHG = jax.vmap(function)(params, x_XHD, weight_XH1)
    return y_TG + collect(y_XHG.reshape(homes, -1), at_home)


# --- few assignments -------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def one_by_one(
    function: Function, params: Any, x_TD: jax.Array, weights_TK: jax.Array, groups_TK: jax.Array
) -> jax.Array:
    """`mix` of few assignments, as in decoding, which does little but read parameters.

    XLA on CPU multiplies one row with a matrix of [out, in] where it lies in the stack; for more rows, or a matrix of
    [in, out], it copies the matrix first. So rows that share a group read it each, and are faster still.
    """
    tokens, choices = groups_TK.shape

    def step(i: jax.Array, y_TG: jax.Array) -> jax.Array:
        token = i // choices
        own, x_1D, weight_11 = (
            jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, groups_TK.reshape(-1)[i], keepdims=False), params),
            jax.lax.dynamic_slice_in_dim(x_TD, token, 1),
            jax.lax.dynamic_slice_in_dim(weights_TK.reshape(-1, 1), i, 1),
        )
        return y_TG.at[token].add(function(own, x_1D, weight_11)[0])

    y_TG: jax.Array = jax.lax.fori_loop(0, tokens * choices, step, _zeros(function, params, x_TD, weights_TK))
    return y_TG


def _one_by_one_backward(function: Function, arrays: Any, dy_TG: jax.Array) -> Any:
    params, x_TD, weights_TK, groups_TK = arrays
    (tokens, choices), groups = groups_TK.shape, jax.tree.leaves(params)[0].shape[0]
    places = plan(groups_TK, groups, room(tokens, choices, groups)[1])
    _, pull = jax.vjp(lambda *to: blocks(function, 0, *to, places)[3], params, x_TD, weights_TK)
    return *pull(dy_TG), None


one_by_one.defvjp(lambda function, *arrays: (one_by_one(function, *arrays), arrays), _one_by_one_backward)


def _zeros(function: Function, params: Any, x_TD: jax.Array, weights_TK: jax.Array) -> jax.Array:
    one = jax.eval_shape(function, jax.tree.map(lambda a: a[0], params), x_TD, weights_TK[:, :1])
    return jnp.zeros(one.shape, one.dtype)


# --- blocks ----------------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def blocks(
    function: Function, homes: int, params: Any, x_TD: jax.Array, weights_TK: jax.Array, plan: Plan
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """(params, x and weights as they are; y [T, G] of the rows that come after the first `homes`).

    Handed through, so that the gradients of their other uses arrive here and the loop adds to them in place: arrays of
    its own, filled with zeros and added in the end, cost as much as the products of a small model.
    """

    def step(i: jax.Array, y_TG: jax.Array) -> jax.Array:
        row_S, _, *rows = _block(i, homes, params, x_TD, weights_TK, plan)
        y_SG = jax.vmap(function)(*rows).reshape(len(row_S), -1)
        return y_TG.at[row_S // weights_TK.shape[1]].add(y_SG, mode="drop")

    times, _ = _loop(homes, plan)
    y_TG = jax.lax.fori_loop(0, times, step, _zeros(function, params, x_TD, weights_TK))
    return params, x_TD, weights_TK, y_TG


def _forward(function: Function, homes: int, *arrays: Any) -> tuple[Any, Any]:
    return blocks(function, homes, *arrays), arrays


def _backward(function: Function, homes: int, arrays: Any, gradients: Any) -> Any:
    params, x_TD, weights_TK, plan = arrays
    *start, dy_TG = gradients

    def step(i: jax.Array, sums: Any) -> Any:
        dparams, dx_TD, dweights_A = sums
        row_S, group_M, *rows = _block(i, homes, params, x_TD, weights_TK, plan)
        token_S = row_S // weights_TK.shape[1]
        y_MRG, pull = jax.vjp(jax.vmap(function), *rows)
        down, dx_MRD, dweight_MR1 = pull(dy_TG.at[token_S].get(mode="fill", fill_value=0).reshape(y_MRG.shape))
        return (
            jax.tree.map(lambda total, d: total.at[group_M].add(d.astype(total.dtype)), dparams, down),
            dx_TD.at[token_S].add(dx_MRD.reshape(len(row_S), -1), mode="drop"),
            dweights_A.at[row_S].add(dweight_MR1.reshape(-1), mode="drop"),
        )

    # A group's sum over its blocks is float32: in bfloat16 it stops growing after 256 of them.
    dparams, dx_TD, dweights_TK = start
    sums = jax.tree.map(lambda d: d.astype(jnp.float32), dparams), dx_TD, dweights_TK.reshape(-1)
    times, _ = _loop(homes, plan)
    dparams, dx_TD, dweights_A = jax.lax.fori_loop(0, times, step, sums)
    dparams = jax.tree.map(lambda d, p: d.astype(p.dtype), dparams, params)
    return dparams, dx_TD, dweights_A.reshape(weights_TK.shape), None


blocks.defvjp(_forward, _backward)


def _loop(homes: int, plan: Plan) -> tuple[jax.Array, int]:
    """How many iterations, of how many blocks: of one block where there are no homes, to read no group for nothing."""
    at_once = AT_ONCE if homes else 1
    return -(-plan.blocks // at_once), at_once


def _block(
    i: jax.Array, homes: int, params: Any, x_TD: jax.Array, weights_TK: jax.Array, plan: Plan
) -> tuple[jax.Array, jax.Array, Any, jax.Array, jax.Array]:
    """Iteration i: the assignments of its rows [S], A for none; the groups of its blocks [M]; the parameters of these
    groups, the rows and the weights, [M, ...] each.
    """
    _, at_once = _loop(homes, plan)
    size = (plan.row_P.shape[0] - homes) // plan.group_N.shape[0] * at_once
    row_S = jax.lax.dynamic_slice_in_dim(plan.row_P, homes + i * size, size)
    group_M = jax.lax.dynamic_slice_in_dim(plan.group_N, i * at_once, at_once)
    x_SD = x_TD.at[row_S // weights_TK.shape[1]].get(mode="fill", fill_value=0)
    weight_S = weights_TK.reshape(-1).at[row_S].get(mode="fill", fill_value=0)
    own = jax.tree.map(lambda a: a[group_M], params)
    return row_S, group_M, own, x_SD.reshape(at_once, -1, x_SD.shape[1]), weight_S.reshape(at_once, -1, 1)
