"""A function of each device's own part of its arrays, where the partitioner would not find by itself that it is one.

The axis names come from the rules; an axis that does not divide stays whole on every device.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from ..sharding.rules import Rules, parts

Axes = tuple[str | None, ...]


def is_spread(rules: Rules | None) -> bool:
    """Whether arrays lie on several devices by these rules: a mesh is in force, and this is not yet one device's
    part.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    return rules is not None and mesh.size > 1 and AxisType.Manual not in mesh.axis_types


def spread(
    function: Callable[..., Any], rules: Rules, arrays: Sequence[Any], axes: Sequence[Axes], out: Axes
) -> jax.Array:
    """function(*arrays) with each device on its part: arrays by their logical axes, and what it gives by `out`.

    An array may be None. The function must need nothing of other devices' parts.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    sizes: Mapping[str, int] = dict(mesh.shape)
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
        of_given, in_specs=tuple(spec(names) for _, names in given), out_specs=spec(out), check_vma=False
    )
    result: jax.Array = spread_out(*(array for array, _ in given))
    return result
