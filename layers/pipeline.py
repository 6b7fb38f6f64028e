"""Depth over devices: each holds some of a run's layers, and microbatches go from one to the next.

GPipe (Huang et al. 2019). The repeats of a run are cut among the S stages along a mesh axis, the rows of a batch into M
microbatches. At each tick every stage takes one microbatch through its own layers, stage s at tick t the microbatch
t - s, and hands on what comes out; so the whole takes M + S - 1 ticks, of which a stage is idle for S - 1, the share
(S - 1) / (M + S - 1). The gradient is that of the loop: microbatches go back as they came.

What a microbatch is besides its hidden states, every stage has, and looks up when its turn comes. Statistics of layers
are sums over tokens, so those of microbatches add up to the batch's. Idle stages compute on rows that were there before
(never on zeros, whose gradient might not be finite) and what they give is left out.

Outside the run the stages share the batch's rows, as any devices do: no embedding and no logit is computed twice. The
first stage gets the rows of all, and the last gives them back. These are exchanges and not sums over devices, as are
their gradients.

Only the axis of the stages is taken from the partitioner; all others work inside a stage as they do outside. So weights
that are spread over fsdp are gathered, and their gradients summed, at every tick and not once a batch.

Decoding has no pipeline: what holds a cache runs as a scan, for which every device gathers the layers it lacks.

Dimensions: S stages, M microbatches, T ticks, N devices that share the batch in a stage, B rows, L length, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..sharding.rules import Rules, axis_names, constrain, free, parts
from .execution import Execution
from .spec import Context

Layers = Callable[[Any, jax.Array, Context], tuple[jax.Array, Any]]
"""(parameters stacked over any number of repeats, x_BLD, context) -> (x_BLD, statistics stacked alike)."""

EACH = 4
"""Microbatches a stage where none are asked for: a fifth of the time is then idle at most (Huang et al., section 3)."""


def stages(rules: Rules | None, sizes: Mapping[str, int] | None = None) -> int:
    """Among how many stages a mesh of these sizes, or the one in force, cuts the layers of a run."""
    return 1 if rules is None else parts(rules, "layers", free() if sizes is None else sizes)


def within(rules: Rules) -> Rules:
    """The rules inside a stage: rows are not spread over the stages, and layers not at all."""
    axes = axis_names(rules.layers)
    return replace(rules, layers=None, batch=tuple(axis for axis in axis_names(rules.batch) if axis not in axes))


def microbatches(asked: int | None, rows: int, rules: Rules, sizes: Mapping[str, int]) -> int:
    """Into how many microbatches a pipeline on a mesh of these sizes cuts a batch of so many rows: as many as asked, or
    EACH a stage, or what comes next below that divides.

    Raises ValueError, with what would do, unless they are a multiple of the stages and divide the rows of a pipeline.
    """
    count, pipelines = stages(rules, sizes), parts(within(rules), "batch", sizes)
    own, rest = divmod(rows, pipelines)
    fit = [number for number in range(count, own + 1, count) if own % number == 0]
    if rest or not fit:
        raise ValueError(
            f"a batch of {rows} rows does not divide among {pipelines} pipelines of {count} stages; "
            f"make it a multiple of {pipelines * count}"
        )
    if asked is not None and asked not in fit:
        raise ValueError(
            f"microbatches is {asked}: {count} stages, with {own} rows for each pipeline, take "
            f"{', '.join(map(str, fit))}"
        )
    return asked or max(number for number in fit if number <= max(EACH * count, fit[0]))


def pipelined(layers: Layers, params: Any, x_BLD: jax.Array, context: Context, execution: Execution) -> Any:
    """`layers(params, x_BLD, context)` with its repeats cut among the stages of the mesh in force.

    The repeats must divide by the stages (sharding/mesh.py). Raises ValueError where rows do not divide, and for layers
    that read more of a token than its microbatch holds."""
    rules, rows, sizes = execution.rules or Rules(), x_BLD.shape[0], free()
    axes, count = tuple(axis for axis in axis_names(rules.layers) if axis in sizes), stages(rules)
    if context.lent or context.own_BLP is not None:
        raise ValueError(unfit(count, context.lent or ("inputs of each layer",)))
    mesh: Any = jax.sharding.get_abstract_mesh()
    placed = within(rules).partition(ROWS, mesh)
    batches = microbatches(execution.microbatches, rows, rules, sizes)
    devices = parts(within(rules), "batch", sizes)

    def cut(x_B: jax.Array) -> jax.Array:
        """[B, ...] to [M, B / M, ...]: of each device's rows each stage has its own, which go nowhere."""
        parted = x_B.reshape(devices, batches, -1, *x_B.shape[1:])
        return jnp.moveaxis(parted, 1, 0).reshape(batches, -1, *x_B.shape[1:])

    def joined(x_MB: jax.Array) -> jax.Array:
        parted = x_MB.reshape(batches, devices, -1, *x_MB.shape[2:])
        return jnp.moveaxis(parted, 0, 1).reshape(-1, *x_MB.shape[2:])

    def of_stage(params: Any, x_MBLD: jax.Array, context_M: Context) -> tuple[jax.Array, Any]:
        stage = jax.lax.axis_index(axes)
        x_MBLD = _each(partial(_to_first, axes=axes, stages=count), x_MBLD, placed)

        def tick(came_BLD: jax.Array, t: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            m = jnp.clip(t - stage, 0, batches - 1)
            mine = context_M._replace(**{name: _at(getattr(context_M, name), m) for name in PER_ROW})
            y_BLD, aux = layers(params, jnp.where(stage == 0, _at(x_MBLD, m), came_BLD), mine)
            return jax.lax.ppermute(y_BLD, axes, [(s, s + 1) for s in range(count - 1)]), (y_BLD, aux)

        ticks = jnp.arange(batches + count - 1)
        _, (y_TBLD, aux_T) = jax.lax.scan(tick, x_MBLD[0], ticks)
        busy_T = (ticks >= stage) & (ticks < stage + batches)
        y_MBLD = _each(partial(_from_last, axes=axes, stages=count), y_TBLD[count - 1 :], placed)
        return y_MBLD, jax.tree.map(lambda x: _sum_where(busy_T, x), aux_T)

    stacked = PartitionSpec(axes)
    x_MBLD = jax.lax.with_sharding_constraint(cut(x_BLD), PartitionSpec(axes, *placed))
    context_M = context._replace(**{name: jax.tree.map(cut, getattr(context, name)) for name in PER_ROW})
    y_MBLD, aux = jax.shard_map(
        of_stage,
        in_specs=(stacked, stacked, PartitionSpec()),
        out_specs=stacked,
        axis_names=frozenset(axes),
        check_vma=False,
    )(params, x_MBLD, context_M)
    return constrain(joined(y_MBLD), rules, *ROWS), aux


def unfit(stages: int, handed: Any) -> str:
    """Why layers cannot be cut among stages."""
    return (
        f"a mesh of {stages} stages: layers of this model hand {', '.join(sorted(handed))} to others, which may be of "
        "another stage; give the devices of stage to fsdp"
    )


ROWS = ("batch", "length")
PER_ROW = ("positions_BL", "segments_BL", "tokens_BL")
"""Fields of a context that are rows of the batch."""


def _at(x_M: Any, m: jax.Array) -> Any:
    """Microbatch m of an array, or of None, which all have."""
    return None if x_M is None else jax.lax.dynamic_index_in_dim(x_M, m, keepdims=False)


def _sum_where(busy_T: jax.Array, x_T: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(jnp.expand_dims(busy_T, tuple(range(1, x_T.ndim))), x_T, 0), axis=0)


def _each(function: Callable[[jax.Array], jax.Array], x_MBLD: jax.Array, placed: PartitionSpec) -> jax.Array:
    """The function of each device's own rows, which the partitioner would first bring together."""
    taken = frozenset(axis for entry in placed for axis in axis_names(entry))
    spec = PartitionSpec(None, *placed)
    if not taken:
        return function(x_MBLD)
    each = jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names=taken, check_vma=False)
    result: jax.Array = each(x_MBLD)
    return result


def _to_first(x_MBLD: jax.Array, axes: tuple[str, ...], stages: int) -> jax.Array:
    """All microbatches, of which each stage brings some."""
    copies = jnp.broadcast_to(x_MBLD, (stages, *x_MBLD.shape))
    gathered: jax.Array = jax.lax.all_to_all(copies, axes, 0, 0, tiled=True)
    return gathered.reshape(-1, *x_MBLD.shape[1:])


def _from_last(y_MBLD: jax.Array, axes: tuple[str, ...], stages: int) -> jax.Array:
    """Each stage's microbatches, as the last stage has them."""
    by_stage = y_MBLD.reshape(stages, -1, *y_MBLD.shape[1:])
    brought: jax.Array = jax.lax.all_to_all(by_stage, axes, 0, 0, tiled=True)
    return brought[-1]
