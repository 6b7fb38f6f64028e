"""How a model is computed, apart from what it computes: precision, platform, rematerialisation, expert dispatch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from ..sharding.rules import Rules

KEPT = "kept"
"""The name (jax.ad_checkpoint.checkpoint_name) of what is no product with a weight and yet not to be computed twice."""

_policies = jax.checkpoint_policies

REMAT: dict[str, Callable[..., Any]] = {
    "none": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(KEPT)
    ),
    "dots": _policies.dots_with_no_batch_dims_saveable,
    "full": _policies.nothing_saveable,
}
"""Policies by name: what a layer keeps for its backward pass.

none: products with weights, and what attention and experts give: nothing that costs a product is computed twice, while
elementwise work between them is, since that is faster than to write it to memory and read it back.
dots: products with weights.  full: its input alone.
"""

GENERATORS = {"neuron": "unsafe_rbg"}
"""How random numbers are drawn, by target, where not as JAX does: Neuron has a generator of its own, and refuses the
integer arithmetic of Threefry, which `rbg` keeps for splitting keys.
"""

TARGETS = ("auto", "cpu", "gpu", "neuron")
DISPATCHES = ("auto", "dense", "grouped", "capacity")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How to compute. It never changes the mathematics, except that capacity dispatch may drop tokens, and counts
    them.

    dtype: of activations and of weights as they enter a matmul; parameters keep their own, softmax, norms and router
    are float32. target: the platform compiled for, never read from the host, which may be another. auto means cpu.
    remat: a name in REMAT.  unroll: layers an iteration of the scan over depth. dispatch: how tokens reach experts
    (see ways.py). auto: capacity on neuron, else grouped. capacity: slots an expert has under capacity dispatch, as a
    multiple of a perfectly even load. microbatches: in how many a pipeline takes a batch, None for what pipeline.py
    finds."""

    dtype: str = "float32"
    target: str = "auto"
    rules: Rules | None = None
    remat: str = "none"
    unroll: int = 1
    dispatch: str = "auto"
    capacity: float = 2.0
    microbatches: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("dtype", self.dtype, ("float32", "bfloat16", "float16")),
            ("target", self.target, TARGETS),
            ("remat", self.remat, tuple(REMAT)),
            ("dispatch", self.dispatch, DISPATCHES),
        ):
            if value not in allowed:
                raise ValueError(f"Execution.{name} is {value!r}; it takes {', '.join(allowed)}")
        if self.unroll < 1 or self.capacity <= 0:
            raise ValueError(f"Execution needs unroll >= 1 and capacity > 0, not {self.unroll} and {self.capacity}")
        if self.microbatches is not None and self.microbatches < 1:
            raise ValueError(f"Execution.microbatches is {self.microbatches}; it must be positive")


def new_key(seed: int, execution: Execution) -> jax.Array:
    """A key of jax.random for the platform that the execution is for."""
    return jax.random.key(seed, impl=GENERATORS.get(execution.target))
