"""Experts on several devices: tokens travel to where their experts are, and the results travel back.

GShard (Lepikhin et al. 2020), section 3.2. Every device holds some of the experts and some of the tokens.
  grouped   dropless. A token goes once to each device that holds any of its experts, and comes back as the sum of what
            these give, so that a device has room enough with one row for every token of every device. Sorted by device,
            rows leave by a padded all_to_all or, where the platform has it (GPU), a ragged one, that sends no padding.
  capacity  each expert's slots (ways.py) of all devices lie together where the expert is: one device's sums and drops.

Composed with rules for the other axes: weights that are also spread over their width are gathered, those spread over
their hidden units give parts of a sum. Padding of the exchange belongs to no expert and costs no product.

Dimensions: B batch, L length, T = B * L tokens of a device, K choices, D width, X experts (of a device: Y), F ffn, N
devices that share the experts, P rows a device sends, R rows it receives, S slots of an expert."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from ..sharding.rules import MeshAxes, Rules, free, parts
from .execution import KEPT, Execution
from .expert import Expert
from .grouped import Plan, collect, plan, spread
from .spread import is_spread
from .ways import DISPATCH, Tokens, mixed, send

Exchange = Callable[[jax.Array], jax.Array]


class Home(NamedTuple):
    """Where the experts are: the mesh axes that they are spread over, and how many devices these are."""

    axes: MeshAxes
    devices: int


def home(rules: Rules | None, tokens: Tokens, experts: int) -> Home | None:
    """Where the experts are, each device alone if it has them all; None without a mesh, or if tokens or experts do not
    divide.
    """
    if rules is None or not is_spread(rules):
        return None
    mesh: Any = jax.sharding.get_abstract_mesh()
    sizes, (batch, length, _) = free(mesh), tokens.x_BLD.shape
    cut = {"batch": batch, "length": length, "experts": experts}
    devices = parts(rules, "experts", sizes)
    if any(size % parts(rules, axis, sizes) for axis, size in cut.items()):
        return None
    return Home(rules.partition(("experts",), mesh)[0] if devices > 1 else None, devices)


def across(
    way: str, expert: Expert, params: tuple[jax.Array, ...], tokens: Tokens, execution: Execution, at: Home
) -> tuple[jax.Array, jax.Array]:
    """`dispatch` with the experts at these devices: ([B, L, D], how many choices were dropped on all devices).

    way: grouped or capacity."""
    rules, mesh = execution.rules or Rules(), _mesh()
    rows = rules.partition(("batch", "length"), mesh)
    hidden = _hidden(rules, params, expert, rows)
    each = {"D": None, "X": at.axes, "F": hidden}
    names = [name.rpartition("_")[2] for name, _ in expert.table]
    specs = tuple(PartitionSpec(*(each[letter] for letter in letters)) for letters in names)

    def own(params: tuple[jax.Array, ...], tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        if hidden is not None:
            first = jax.lax.axis_index(hidden) == 0
            params = tuple(w if "F" in letters else w * first for w, letters in zip(params, names, strict=True))
        if at.devices == 1:  # left to the partitioner, the sort by expert would be of all devices' tokens on each
            y_BLD, dropped = DISPATCH[way](expert, params, tokens, execution)
        else:
            y_BLD, dropped = WAYS[way](expert, params, tokens, execution, at)
        return y_BLD.reshape(1, *tokens.x_BLD.shape), dropped.reshape(1, 1)

    # Sums over devices are left to the partitioner, whose transposes of them cost nothing.
    out = (PartitionSpec(hidden, *rows), PartitionSpec(*rows))
    of_devices = jax.shard_map(
        own, in_specs=(specs, Tokens(*[PartitionSpec(*rows)] * 4)), out_specs=out, check_vma=False
    )
    y_BLD, dropped = of_devices(params, tokens)
    return jnp.sum(y_BLD, axis=0), jnp.sum(dropped)


def _mesh() -> Any:
    return jax.sharding.get_abstract_mesh()


def _hidden(rules: Rules, params: tuple[jax.Array, ...], expert: Expert, rows: PartitionSpec) -> MeshAxes:
    """The mesh axes that the hidden units stay spread over: those that hold no tokens, if they divide."""
    mesh = _mesh()
    (_, ffn) = rules.partition(("experts", "ffn"), mesh)
    taken = {name for axes in rows for name in ((axes,) if isinstance(axes, str) else axes or ())}
    names = tuple(name for name in ((ffn,) if isinstance(ffn, str) else ffn or ()) if name not in taken)
    letters = [name.rpartition("_")[2] for name, _ in expert.table]
    size = next(w.shape[axes.index("F")] for w, axes in zip(params, letters, strict=True) if "F" in axes)
    return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None


# --- grouped ---------------------------------------------------------------------------------------------------------


def _grouped(expert: Expert, params: tuple[jax.Array, ...], tokens: Tokens, execution: Execution, at: Home) -> Any:
    own, count = params[0].shape[0], tokens.x_BLD.shape[0] * tokens.x_BLD.shape[1]
    x_TD, weights_TK, experts_TK = (each.reshape(count, -1) for each in (tokens.x_BLD, *tokens[2:]))
    device_TK = jnp.where(experts_TK < own * at.devices, experts_TK // own, at.devices)
    to_TK = jnp.where(_first(device_TK), device_TK, at.devices)
    ways = _ragged if execution.target == "gpu" else _padded
    there, back, places = ways(to_TK, at)
    x_RD = checkpoint_name(there(spread(x_TD, places), 0), KEPT)
    weights_RK = there(spread(weights_TK, places), 0)
    token_P = places.row_P // to_TK.shape[1]
    experts_PK = experts_TK.at[token_P].get(mode="fill", fill_value=own * at.devices)
    experts_RK = there(experts_PK, own * at.devices) - jax.lax.axis_index(at.axes) * own
    experts_RK = jnp.where((experts_RK >= 0) & (experts_RK < own), experts_RK, own)
    weights_RK = jnp.where(experts_RK < own, weights_RK, 0)
    y_RD = mixed(expert, params, x_RD, weights_RK, experts_RK, execution, expected=to_TK.size)
    return collect(back(y_RD), places).reshape(tokens.x_BLD.shape), jnp.float32(0)


def _first(device_TK: jax.Array) -> jax.Array:
    """bool [T, K]: whether no better choice of the token is of the same device."""
    same_TKK = device_TK[:, :, None] == device_TK[:, None, :]
    return ~jnp.any(jnp.tril(same_TKK, -1), axis=-1)


Ways = tuple[Callable[[jax.Array, int], jax.Array], Exchange, Plan]
"""What brings rows [P, ...] to their devices as [R, ...], where none came as the number given; what brings the results
back; and where each choice's row is among those sent.
"""


def _padded(to_TK: jax.Array, at: Home) -> Ways:
    """Room for all of a device's tokens at each other one."""
    count = to_TK.shape[0]
    places = checkpoint_name(plan(to_TK, at.devices, count, count), KEPT)
    places = places._replace(row_P=places.row_P[: at.devices * count])

    def exchanged(x: jax.Array) -> jax.Array:
        return _exchange(x.reshape(at.devices, count, -1), at, 0, 0).reshape(at.devices * count, -1)

    return lambda x, none: exchanged(x), exchanged, places


def _ragged(to_TK: jax.Array, at: Home) -> Ways:
    """Rows close together, by device, and as many as there are."""
    count, most = to_TK.shape[0], to_TK.shape[0] * min(to_TK.shape[1], at.devices)
    places = checkpoint_name(plan(to_TK, at.devices, 1), KEPT)
    places = places._replace(row_P=places.row_P[:most])
    sent_N = jnp.zeros(at.devices, jnp.int32).at[to_TK.reshape(-1)].add(1, mode="drop")
    received_N = _exchange(sent_N, at, 0, 0)
    from_N, into_N = (jnp.cumsum(sizes) - sizes for sizes in (sent_N, received_N))
    there_N, back_N = _exchange(into_N, at, 0, 0), _exchange(from_N, at, 0, 0)

    def there(x: jax.Array, none: int) -> jax.Array:
        room = jnp.full((at.devices * count, x.shape[1]), none, x.dtype)
        arrived: jax.Array = jax.lax.ragged_all_to_all(x, room, from_N, sent_N, there_N, received_N, axis_name=at.axes)
        return arrived

    def back(y: jax.Array) -> jax.Array:
        room = jnp.zeros((most, y.shape[1]), y.dtype)
        returned: jax.Array = jax.lax.ragged_all_to_all(y, room, into_N, received_N, back_N, sent_N, axis_name=at.axes)
        return returned

    return there, back, places


def _exchange(x: jax.Array, at: Home, split: int, joined: int) -> jax.Array:
    exchanged: jax.Array = jax.lax.all_to_all(x, at.axes, split, joined, tiled=True)
    return exchanged


# --- capacity --------------------------------------------------------------------------------------------------------


def _capacity(expert: Expert, params: tuple[jax.Array, ...], tokens: Tokens, execution: Execution, at: Home) -> Any:
    sent = send(tokens, params[0].shape[0] * at.devices, execution.capacity)
    x_YSD, weight_YS1 = (_exchange(each, at, 0, 1) for each in sent[:2])
    y_YSD = jax.vmap(expert)(params, x_YSD, weight_YS1)
    return sent.bring(_exchange(y_YSD, at, 1, 0)), sent.dropped


WAYS = {"grouped": _grouped, "capacity": _capacity}
