"""An optimizer of whole matrices on a mesh: while it works, each device has some layers of a stack whole, and not its
part of every layer.

Muon multiplies a matrix with itself. Left to the partitioner, matrices that lie in parts would come together on every
device: a whole stack of layers, with all of its experts, and the same products on each. So the stack turns: what lay
over a matrix's own axes comes to lie over its layers, by an exchange of what each device holds, which is as large
after it as before; then back. Distributed Muon: Liu et al. 2025 (Moonlight), section 2.3, there by gathering.

Layers that do not divide are made up with zeros, which stay zeros."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from ..layers.accounting import DEPTH, STACKED, Leaf, leaves
from ..layers.decoder import Spec
from ..layers.spread import is_spread
from ..sharding.rules import Rules, axis_names, constrain


def by_layer(transform: Any, spec: Spec, rules: Rules | None) -> Any:
    """The optax.GradientTransformation with each device on whole layers; itself where there are no rules.

    transform: one that treats each matrix by itself. Its state's tree stays."""
    if rules is None:
        return transform
    by_path = {leaf.path: leaf for leaf in leaves(spec)}

    def of_each(function: Callable[[Any, Leaf | None, Rules], Any], tree: Any) -> Any:
        """The tree with the function on each array, and the parameter whose path its own ends with, if any."""

        def on(path: Any, x: Any) -> Any:
            names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
            return function(
                x, next((by_path[names[i:]] for i in range(len(names)) if names[i:] in by_path), None), rules
            )

        return jax.tree_util.tree_map_with_path(on, tree)

    def update(*given: Any) -> tuple[Any, Any]:
        if not is_spread(rules):
            return transform.update(*given)  # type: ignore[no-any-return]
        specs = tuple(of_each(_whole, tree) for tree in given)
        # As each device's own, since the partitioner would bring experts together to make one axis of layers and them.
        own = jax.shard_map(transform.update, in_specs=specs, out_specs=specs[:2], check_vma=False)
        moved, state = own(*(of_each(_turned, tree) for tree in given))
        return of_each(_back, moved), of_each(_back, state)

    return optax.GradientTransformation(
        transform.init, lambda updates, state, params=None: update(updates, state, params)
    )


def _whole(x: Any, leaf: Leaf | None, rules: Rules) -> PartitionSpec:
    """How it lies with every matrix whole."""
    return PartitionSpec() if leaf is None else _steps(leaf, rules)[-1]


def _turned(x: jax.Array, leaf: Leaf | None, rules: Rules) -> jax.Array:
    """x [layers, ...], its layers made up to a multiple of the devices, and spread over these alone."""
    if leaf is None or leaf.axes[0] not in DEPTH:
        return x
    steps, sizes = _steps(leaf, rules), _sizes()
    devices = math.prod(sizes[axis] for axis in axis_names(steps[-1][0]))
    return _through(jnp.pad(x, ((0, -x.shape[0] % devices), *((0, 0),) * (x.ndim - 1))), steps)


def _back(x: jax.Array, leaf: Leaf | None, rules: Rules) -> jax.Array:
    """The inverse of `_turned`."""
    if leaf is None:
        return x
    steps = _steps(leaf, rules) if leaf.axes[0] in DEPTH else []
    return constrain(_through(x, steps[::-1])[: leaf.shape[0]], rules, *leaf.axes)


def _through(x: jax.Array, steps: Sequence[PartitionSpec]) -> jax.Array:
    for step in steps:
        x = jax.lax.with_sharding_constraint(x, step)
    return x


def _sizes() -> Mapping[str, int]:
    mesh: Any = jax.sharding.get_abstract_mesh()
    return dict(mesh.shape)


def _steps(leaf: Leaf, rules: Rules) -> list[PartitionSpec]:
    """How it lies while one axis after another of its matrices goes over to the layers; of a single layer, how it does
    with them whole.

    One at a time, as each then is one exchange among the devices of an axis of the mesh."""
    sizes = _sizes()
    held = [tuple(axis for axis in names if axis in sizes) for names in rules.over(leaf.axes)]
    steps = [PartitionSpec(*held)]
    for i, logical in enumerate(leaf.axes):
        if held[i] and logical not in STACKED:
            held[0] = (*held[0], *held[i]) if leaf.axes[0] in DEPTH else held[0]
            held[i] = ()
            steps.append(PartitionSpec(*held))
    return steps
