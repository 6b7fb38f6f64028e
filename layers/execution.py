"""How a model is computed, apart from what it computes: precision, platform, rematerialisation, expert dispatch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from ..sharding.rules import Rules

REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots_all": jax.checkpoint_policies.dots_saveable,
}
"""Policies by name: what a layer keeps for its backward pass.

none: everything; full: its input alone; dots: its projections.
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
    (see moe.py). auto: capacity on neuron, else grouped. capacity: slots an expert has under capacity dispatch, as a
    multiple of a perfectly even load."""

    dtype: str = "float32"
    target: str = "auto"
    rules: Rules | None = None
    remat: str = "none"
    unroll: int = 1
    dispatch: str = "auto"
    capacity: float = 2.0

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
