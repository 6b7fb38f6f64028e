"""Meshes as a user writes them, `fsdp=4,expert=2` or `auto`, and whether a model and its batch divide over one.

A mesh is refused before anything is allocated, naming the array, the axis and the sizes, and a mesh that works.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from .rules import MESH_AXES, Rules, axis_names, make_mesh

Sizes = dict[str, int]
"""Mesh axis -> devices along it."""

AUTO_AXES = ("data", "fsdp", "expert", "tensor", "sequence")
"""What `auto` arranges devices along."""

LARGE = 2**30
"""Bytes of a training state above which `auto` spreads it (fsdp) and does not copy it (data)."""

STATE_BYTES = 12
"""Of a parameter in training: itself and two moments, float32."""


class Array(NamedTuple):
    """What is to be spread: its name for messages, its logical axes and its shape."""

    name: str
    axes: Sequence[str | None]
    shape: Sequence[int]


def parse_mesh(text: str) -> Sizes:
    """`"fsdp=4,expert=2"` as sizes, in the order given.

    Raises ValueError for what is not AXIS=SIZE, an unknown axis, and an axis given twice.
    """
    sizes: Sizes = {}
    for part in text.split(","):
        axis, equals, size = (piece.strip() for piece in part.partition("="))
        if not equals or not size.isdecimal() or int(size) < 1:
            raise ValueError(f"mesh {text!r}: {part.strip()!r} is not AXIS=SIZE, as in fsdp=4,expert=2")
        if axis not in MESH_AXES:
            raise ValueError(f"mesh {text!r}: unknown axis {axis!r}; the mesh axes are {', '.join(MESH_AXES)}")
        if axis in sizes:
            raise ValueError(f"mesh {text!r}: axis {axis!r} is given twice; write it once, with the product")
        sizes[axis] = int(size)
    return sizes


def written(sizes: Mapping[str, int]) -> str:
    """The inverse of `parse_mesh`."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def misfit(sizes: Mapping[str, int], arrays: Iterable[Array], rules: Rules) -> str | None:
    """The first array that does not divide over a mesh of these sizes, in words with numbers; None if all do."""
    for array in arrays:
        for axis, size, names in zip(array.axes, array.shape, rules.over(array.axes), strict=True):
            over = [name for name in names if sizes.get(name, 1) > 1]
            if size % math.prod(sizes[name] for name in over):
                cut = " x ".join(f"{name}={sizes[name]}" for name in over)
                return f"{array.name} {tuple(array.shape)}: its axis {axis} of {size} does not divide by {cut}"
    return None


def choose_sizes(devices: int, arrays: Sequence[Array], rules: Rules) -> Sizes | None:
    """Sizes of a mesh that all arrays divide over, None if there is none.

    In this order: few tensor devices, as those talk in every layer; few that share a sequence; many for experts, whose
    tokens alone travel; the rest fsdp for a large training state and data for a small one.
    """
    large = STATE_BYTES * sum(math.prod(array.shape) for array in arrays if "batch" not in array.axes) > LARGE

    def rank(sizes: Sizes) -> tuple[int, ...]:
        return sizes["tensor"], sizes["sequence"], -sizes["expert"], -sizes["fsdp" if large else "data"]

    logical = {axis for array in arrays for axis in array.axes if axis is not None}
    useful = {name for axis in logical for name in axis_names(getattr(rules, axis))}
    useful -= set() if "experts" in logical else {"expert"}  # the batch alone could use data as well
    candidates = (s for s in _factorisations(devices) if all(size == 1 or axis in useful for axis, size in s.items()))
    fits = [sizes for sizes in candidates if misfit(sizes, arrays, rules) is None]
    if not fits:
        return None
    best = min(fits, key=rank)
    return {axis: size for axis, size in best.items() if size > 1} or {"data": 1}


def _factorisations(devices: int, axes: tuple[str, ...] = AUTO_AXES) -> Iterator[Sizes]:
    """Every way to arrange so many devices along the axes."""
    first, *rest = axes
    for size in range(1, devices + 1) if rest else (devices,):
        if devices % size == 0:
            below: Iterable[Sizes] = _factorisations(devices // size, tuple(rest)) if rest else ({},)
            yield from ({first: size, **sizes} for sizes in below)


def fitting_mesh(text: str, arrays: Sequence[Array], rules: Rules, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that the text asks for, or `auto`: all devices, and every array divides over it.

    Raises ValueError with the numbers, and a mesh that works where there is one.
    """
    count = len(devices) if devices is not None else jax.device_count()
    works = choose_sizes(count, arrays, rules)
    hint = f"a mesh that works: {written(works)}" if works else f"no mesh of {count} devices works with these rules"
    if text == "auto":
        if works is None:
            reason = misfit({"data": count}, arrays, rules) or "its axes have no common divisor"
            raise ValueError(f"mesh auto: {hint}: {reason}; change the batch or the number of devices")
        return make_mesh(devices, **works)
    sizes = parse_mesh(text)
    product = math.prod(sizes.values())
    if product != count:
        raise ValueError(f"mesh {text} needs {product} devices, but there are {count}; {hint}")
    asked: Any = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    for array in arrays:
        rules.partition(array.axes, asked)
    wrong = misfit(sizes, arrays, rules)
    if wrong is not None:
        raise ValueError(f"mesh {text}: {wrong}; {hint}")
    return make_mesh(devices, **sizes)
