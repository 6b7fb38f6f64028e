"""A function of each device's own part of its arrays, where the partitioner would not find by itself that it is one.

The axis names come from the rules; an axis that does not divide stays whole on every device.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from ..sharding.rules import MeshAxes, Rules, axis_names, free, parts

Axes = tuple[str | None, ...]


def is_spread(rules: Rules | None) -> bool:
    """Whether arrays lie on several devices by these rules: a mesh is in force, and this is not yet one device's
    part.
    """
    return rules is not None and math.prod(free().values()) > 1


class Line(NamedTuple):
    """The devices that share a sequence: the mesh axes that they lie along, and how many they are."""

    axes: MeshAxes
    devices: int


def line(rules: Rules, length: int) -> Line | None:
    """Among whom a sequence of this length is cut by the mesh in force; None if every device holds it whole."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    devices = parts(rules, "length", free(mesh))
    return None if devices == 1 or length % devices else Line(rules.partition(("length",), mesh)[0], devices)


def to_heads(rules: Rules, shared: Line, heads: int) -> bool:
    """Whether a device's heads of keys are to be spread over those that share a sequence, and divide."""
    over = set(axis_names(shared.axes)) <= set(axis_names(rules.attended))
    return over and heads % shared.devices == 0


def spread(
    function: Callable[..., jax.Array], rules: Rules, arrays: Sequence[Any], axes: Sequence[Axes], out: Axes
) -> jax.Array:
    """function(*arrays) with each device on its part: arrays by their logical axes, and what it gives by `out`.

    An array may be None. What the function needs of other devices' parts, it fetches itself.
    """
    return spread_all(lambda *own: (function(*own),), rules, arrays, axes, (out,))[0]


def spread_all(
    function: Callable[..., tuple[jax.Array, ...]],
    rules: Rules,
    arrays: Sequence[Any],
    axes: Sequence[Axes],
    outs: Sequence[Axes],
) -> tuple[jax.Array, ...]:
    """`spread` of a function that gives several arrays."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    sizes: Mapping[str, int] = free(mesh)
    given = [(array, names) for array, names in zip(arrays, axes, strict=True) if array is not None]
    lengths: dict[str, int] = {}
    for array, names in given:
        for name, size in zip(names, array.shape, strict=False):
            lengths[name or ""] = math.gcd(lengths.get(name or "", 0), size)
    whole = {name for name, size in lengths.items() if name and size % parts(rules, name, sizes)}

    def spec(names: Axes) -> PartitionSpec:
        return rules.partition([None if name in whole else name for name in names], mesh)

    def of_given(*own: Any) -> Any:
        rest = iter(own)
        return function(*(None if array is None else next(rest) for array in arrays))

    spread_out = jax.shard_map(
        of_given, in_specs=tuple(spec(names) for _, names in given), out_specs=tuple(map(spec, outs)), check_vma=False
    )
    results: tuple[jax.Array, ...] = spread_out(*(array for array, _ in given))
    return results
