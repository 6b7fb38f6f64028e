"""Tokens to their experts and back, of any kind and on any mesh: the way that the execution asks for.

Dimensions: B batch, L length, D width, X experts, K choices."""

import jax

from .execution import Execution
from .expert import Expert
from .expert_parallel import WAYS, across, home
from .ways import DISPATCH, Tokens


def way_of(execution: Execution) -> str:
    """The name in DISPATCH of how tokens reach experts in this execution."""
    default = "capacity" if execution.target == "neuron" else "grouped"
    return default if execution.dispatch == "auto" else execution.dispatch


def dispatch(
    expert: Expert, params: tuple[jax.Array, ...], tokens: Tokens, execution: Execution
) -> tuple[jax.Array, jax.Array]:
    """The sum over each token's choices of expert(its params, x, weight): ([B, L, D], how many choices were dropped,
    float32).

    params: arrays [X, ...] in the order of the expert's table."""
    way, at = way_of(execution), home(execution.rules, tokens, params[0].shape[0])
    # Slots are of a whole row: a device that has all experts, but part of a row, leaves them to the partitioner.
    if at is not None and (way == "grouped" or (way in WAYS and at.devices > 1)):
        return across(way, expert, params, tokens, execution, at)
    y_BLD, dropped = DISPATCH[way](expert, params, tokens, execution)
    return y_BLD, dropped
