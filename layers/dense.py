"""Weights and the products with them.

A parameter's name carries its axes, `wq_DKGE`, so its shape follows from a table of sizes and its einsum uses the
same letters."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from .execution import Execution


def attach(parent: nn.Module, shell: nn.Module, name: str) -> nn.Module:
    """The shell as the parent's child of this name: what a layer spec's `.shell(execution)` gives has none of its
    own.
    """
    return shell.clone(parent=parent, name=name)


def weight(module: nn.Module, name: str, sizes: Mapping[str, int], inputs: str, execution: Execution) -> jax.Array:
    """The module's parameter `name`, in the execution's dtype; initialised normal with variance 1 / (product of its
    input axes).
    """
    shape = tuple(sizes[axis] for axis in name.rpartition("_")[2])
    deviation = math.prod(sizes[axis] for axis in inputs) ** -0.5
    parameter: jax.Array = module.param(name, nn.initializers.normal(deviation), shape, jnp.float32)
    return parameter.astype(execution.dtype)


def bias(module: nn.Module, name: str, sizes: Mapping[str, int], execution: Execution) -> jax.Array:
    """The module's parameter `name` in the execution's dtype, initialised to zero."""
    shape = tuple(sizes[axis] for axis in name.rpartition("_")[2])
    parameter: jax.Array = module.param(name, nn.initializers.zeros, shape, jnp.float32)
    return parameter.astype(execution.dtype)


def project(formula: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """The einsum of activations with a weight, as one matrix product: `project("BLD,DKGE->BLKGE", x_BLD, wq_DKGE)`.

    The axes summed over must end x and begin w. XLA on a CPU runs the gradient of a product of flat matrices up to
    1.7 times as fast as that of the einsum with its batch axes, and is indifferent elsewhere. Under a mesh it stays the
    einsum: the partitioner cannot flatten two axes that are both spread, and would gather them. What is spread is known
    by the mesh in force, which is a key of jit's cache, not by the rules: arrays may be spread by other means."""
    x_axes, w_axes, out_axes = formula.replace("->", ",").split(",")
    shared = [axis for axis in w_axes if axis in x_axes]
    rows, columns = x.shape[: -len(shared)], w.shape[len(shared) :]
    if x_axes[len(rows) :] + w_axes[len(shared) :] != "".join(shared) + out_axes[len(rows) :]:
        raise ValueError(f"{formula!r} does not sum the last axes of the activations with the first of the weight")
    if jax.sharding.get_abstract_mesh().size > 1:
        return jnp.einsum(formula, x, w)
    inner = math.prod(x.shape[len(rows) :])
    out = jnp.dot(x.reshape(-1, inner), w.reshape(inner, -1))
    return out.reshape(*rows, *columns)
