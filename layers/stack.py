"""Layers over depth: a run of them as one scan, or cut among devices (pipeline.py).

Dimensions: B batch, L length, D width, R repeats of a run, N depth, P what a layer reads of its own.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from ..sharding.rules import constrain
from .dense import attach
from .execution import REMAT, Execution
from .pattern import Run
from .pipeline import pipelined, unfit
from .spec import Context


class Period(nn.Module):
    """The layers of one pass of a scan. `keep` returns their cache entries."""

    layers: tuple[Any, ...]
    execution: Execution
    keep: bool

    @nn.compact
    def __call__(
        self, state: tuple[jax.Array, dict[str, Any]], held: Any, own: Any, context: Context
    ) -> tuple[Any, tuple[Any, Any, dict[str, Any]]]:
        (x_BLD, carried), entries, aux = state, {}, {}
        lent: dict[str, Any] = {}
        context = lending(context, carried)
        x_BLD = constrain(x_BLD, self.execution.rules, "batch", "length")
        for p, layer in enumerate(self.layers):
            shell = attach(self, layer.block.shell(self.execution, layer.attention, layer.mlp), f"layer_{p}")
            known = context if own is None else context._replace(own_BLP=own[p])
            x_BLD, new, aux[f"layer_{p}"] = shell(x_BLD, known, None if held is None else held[f"layer_{p}"])
            entries[f"layer_{p}"] = new if self.keep else {}
            handed = lent_by(new)
            lent |= handed
            context = lending(context, handed)
        first_lent = {name: value for name, value in lent.items() if name not in carried}
        return (x_BLD, {name: lent.get(name, carried[name]) for name in carried}), (entries, aux, first_lent)


def lent_by(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Takes out of a layer's cache entries what it hands to later layers, by name."""
    return {name: value for part in entries.values() for name, value in part.pop("lent", {}).items()}


def lending(context: Context, handed: dict[str, Any]) -> Context:
    return context._replace(lent={**(context.lent or {}), **handed}) if handed else context


def scanned(run: Run, execution: Execution, keep: bool) -> nn.Module:
    """The run as one module that is nobody's child yet, its parameters stacked over the repeats."""
    scan = nn.scan(
        nn.remat(Period, policy=REMAT[execution.remat], prevent_cse=False),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, nn.broadcast),
        length=run.repeats,
        unroll=execution.unroll,
        check_constancy_invariants=False,  # it would trace each layer twice, for outputs that none has
    )
    module: nn.Module = scan(run.period, execution, keep, parent=None)
    return module


def among_stages(
    run: Run, params: Any, x_BLD: jax.Array, context: Context, execution: Execution
) -> tuple[jax.Array, dict[str, Any]]:
    """The run cut among the stages of the mesh in force: (x_BLD, auxiliary statistics), as its scan gives them.

    params: the run's own."""

    def layers(params: Any, x_BLD: jax.Array, context: Context) -> tuple[jax.Array, Any]:
        own = run._replace(repeats=jax.tree.leaves(params)[0].shape[0])
        module = scanned(own, execution, keep=False)
        (x_BLD, _), (_, aux, lent) = module.apply({"params": params}, (x_BLD, {}), None, None, context)
        if lent:
            raise ValueError(unfit(run.repeats // own.repeats, lent))
        return x_BLD, aux

    x_BLD, aux = pipelined(layers, params, x_BLD, context, execution)
    return x_BLD, aux


def by_position(own_NBLP: jax.Array | None, run: Run) -> list[jax.Array] | None:
    """What a run's layers read of their own, [repeats, batch, length, dim] for each place in its period."""
    if own_NBLP is None:
        return None
    period = len(run.period)
    of_run = own_NBLP[run.start : run.start + period * run.repeats]
    return [of_run[p::period] for p in range(period)]
