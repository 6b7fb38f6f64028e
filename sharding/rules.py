"""Which mesh axes each logical axis of a parameter or activation is spread over: the only place that names a mesh
axis.

The table is a frozen dataclass, one field a logical axis, in the manner of the sharding rules of jax-llm-examples. It
is passed along explicitly and is part of the Execution, never a context, so that a changed table is a changed jit
cache key."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "expert", "tensor", "sequence", "stage")
MeshAxes = str | tuple[str, ...] | None

RANKS = ("q_rank", "kv_rank", "latent_dim", "per_layer")
"""Logical axes that give way: what another axis of the same array lies over drops out of theirs. So a matrix from width
to a latent is cut along its width, and one from a latent to heads, which has none, along the latent; so are tables of
what each layer reads of a token."""


def axis_names(axes: MeshAxes) -> tuple[str, ...]:
    """A rule as a tuple of mesh axes."""
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Logical axis -> the mesh axis (or axes) it is sharded over; None keeps it whole on every device.

    layers: the repeats of the deepest run, which a pipeline cuts among its stages; few_layers: those of other runs."""

    batch: MeshAxes = ("data", "fsdp", "expert", "stage")
    length: MeshAxes = "sequence"
    layers: MeshAxes = "stage"
    few_layers: MeshAxes = None
    width: MeshAxes = "fsdp"
    vocab: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    q_per_kv: MeshAxes = None
    heads: MeshAxes = "tensor"
    attended: MeshAxes = None
    head_dim: MeshAxes = None
    nope_dim: MeshAxes = None
    value_dim: MeshAxes = None
    q_rank: MeshAxes = "fsdp"
    kv_rank: MeshAxes = "fsdp"
    latent_dim: MeshAxes = "fsdp"
    pair: MeshAxes = None
    taps: MeshAxes = None
    per_layer: MeshAxes = "fsdp"
    streams: MeshAxes = None
    mixes: MeshAxes = None
    ffn: MeshAxes = "tensor"
    experts: MeshAxes = "expert"
    routes: MeshAxes = None

    def __post_init__(self) -> None:
        for field in fields(self):
            for axis in axis_names(getattr(self, field.name)):
                if axis not in MESH_AXES:
                    raise ValueError(
                        f"Rules.{field.name} names mesh axis {axis!r}; the mesh axes are {', '.join(MESH_AXES)}"
                    )

    def over(self, axes: Sequence[str | None]) -> list[tuple[str, ...]]:
        """The mesh axes that each axis of an array with these logical axes lies over (see RANKS).

        Raises ValueError for a logical axis that the table does not have."""
        known = {field.name for field in fields(self)}
        for logical in axes:
            if logical is not None and logical not in known:
                raise ValueError(
                    f"no sharding rule for logical axis {logical!r}; the rules are {', '.join(sorted(known))}"
                )
        found = [axis_names(getattr(self, logical) if logical else None) for logical in axes]
        for i, logical in enumerate(axes):
            if logical in RANKS:
                taken = {axis for j, names in enumerate(found) if j != i for axis in names}
                found[i] = tuple(axis for axis in found[i] if axis not in taken)
        return found

    def partition(self, axes: Sequence[str | None], mesh: Mesh) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions are these logical axes; mesh axes that the mesh lacks, or that
        a shard_map has taken (`free`), drop out.

        Raises ValueError for a logical axis that the table does not have and for a mesh axis used twice in one array.
        """
        seen: dict[str, str] = {}
        entries: list[MeshAxes] = []
        there = free(mesh)
        for logical, names in zip(axes, self.over(axes), strict=True):
            present = tuple(axis for axis in names if axis in there)
            for axis in present:
                if axis in seen:
                    raise ValueError(
                        f"mesh axis {axis!r} would shard both {seen[axis]!r} and {logical!r} of one array {tuple(axes)}"
                    )
                seen[axis] = str(logical)
            entries.append(present[0] if len(present) == 1 else present or None)
        return PartitionSpec(*entries)

    def shardings(self, axes: Any, mesh: Mesh) -> Any:
        """A tree of NamedShardings from a tree of logical axes (leaves: tuples of axis names)."""
        is_leaf = lambda node: isinstance(node, tuple)  # noqa: E731
        return jax.tree.map(lambda leaf: NamedSharding(mesh, self.partition(leaf, mesh)), axes, is_leaf=is_leaf)


def _by_width(axes: MeshAxes) -> Rules:
    """The default rules with parameters over these axes by width, or by what stands in for it."""
    changed: Mapping[str, Any] = dict.fromkeys(("width", *RANKS), axes)
    return Rules(**changed)


RULES: Mapping[str, Rules] = {
    "default": Rules(),
    "groups": Rules(kv_heads=None, q_per_kv="tensor"),
    "data": _by_width(None),
    "zero": _by_width(("data", "fsdp")),
    "heads": Rules(attended="sequence"),
}
"""Rules by name. default: parameters over fsdp by width or by a latent's rank, over tensor by heads, hidden units and
vocabulary (Shoeybi et al. 2019), over expert by experts, over stage by layers (Huang et al. 2019). groups: the same
where there are fewer key heads than tensor devices: the queries of a group are spread instead. data: not over fsdp,
which then is a second data axis (each device holds all parameters). zero: over data too, for the least memory
(Rajbhandari et al. 2020, stage 3). heads: key heads lie over the sequence axis while they attend, where they divide
(`attended`; Jacobs et al. 2023): no keys go around."""


def rules_by_name(name: str) -> Rules:
    """The rules of this name. Raises ValueError naming those there are."""
    if name not in RULES:
        raise ValueError(f"no sharding rules are called {name!r}; there are {', '.join(RULES)}")
    return RULES[name]


def constrain(x: jax.Array, rules: Rules | None, *axes: str | None) -> jax.Array:
    """x with the sharding that the rules give its first axes, later ones whole on every device.

    x itself where there are no rules, no mesh is in force (`jax.set_mesh`), or inside a shard_map over all of it.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    if rules is None or math.prod(free(mesh).values()) <= 1:
        return x
    held: jax.Array = jax.lax.with_sharding_constraint(x, rules.partition(axes, mesh))
    return held


def free(mesh: Any = None) -> dict[str, int]:
    """The mesh axes, with their sizes, that no shard_map has taken: of this mesh, or of the one in force, where each
    device's own part of an array is still to be told.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {axis: mesh.shape[axis] for axis, kind in types if kind != AxisType.Manual}


def parts(rules: Rules, axis: str, sizes: Mapping[str, int]) -> int:
    """Into how many parts a logical axis is cut on a mesh of these sizes."""
    return math.prod(sizes.get(name, 1) for name in axis_names(getattr(rules, axis)))


def make_mesh(devices: Sequence[jax.Device] | None = None, **sizes: int) -> Mesh:
    """A mesh with automatic axes, e.g. `make_mesh(fsdp=4, tensor=2)`.

    Raises ValueError for an unknown axis, or when the sizes do not multiply to the number of devices.
    """
    count = len(devices) if devices is not None else jax.device_count()
    product = 1
    for axis, size in sizes.items():
        if axis not in MESH_AXES:
            raise ValueError(f"unknown mesh axis {axis!r}; the mesh axes are {', '.join(MESH_AXES)}")
        product *= size
    if product != count:
        asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(
            f"mesh {asked} needs {product} devices, but there are {count}; a mesh that works: fsdp={count}"
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)
