"""AdamW and Muon, their learning rate over time, and which parameters they decay, orthogonalise or leave alone.

AdamW: Loshchilov & Hutter 2019. Muon, which replaces the momentum of a matrix by the nearest orthogonal one: Jordan et
al. 2024; scaled so that its steps are as large as AdamW's and both can share a learning rate and a weight decay: Liu et
al. 2025 (Moonlight), section 2.2. Both are Optax's. Warmup-stable-decay: Hu et al. 2024 (MiniCPM), section 4.

What happens to a parameter follows from its axes (layers/accounting.py): Muon gets the matrices but for embedding, head
and routers; layers and experts that are stacked in one array are matrices each. Weights of matrices decay, but not the
embedding's. The rest, scales and biases, goes to AdamW without decay. The routers' selection biases are not trained by
gradients (step.py) and belong to no optimizer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..layers.accounting import Leaf, input_axes, is_matrix, is_vocab, output_axes, tree_of
from ..layers.decoder import Spec
from ..layers.spec import require
from ..sharding.rules import Rules
from .by_layer import by_layer

OPTIMIZERS = ("adamw", "muon")
SELECTION_BIAS = ("router", "bias_X")
"""Where a router keeps its selection bias, below its layer (layers/router.py)."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimizer and its learning rate over `steps` steps.

    name: adamw, or muon (with AdamW for what is no matrix).  learning_rate: the peak.  schedule: a name in SCHEDULES.
    warmup, decay: fractions of the steps, at the beginning and (wsd) at the end.  final: fraction of the peak at the
    end.  b1, b2, eps: AdamW's.  momentum: Muon's.  clip: the largest global norm of a gradient, None for no limit.
    """

    steps: int
    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "wsd"
    warmup: float = 0.05
    decay: float = 0.2
    final: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.1
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        require(self, self.steps > 0, "steps", "it must be positive")
        require(self, self.name in OPTIMIZERS, "name", f"it takes {', '.join(OPTIMIZERS)}")
        require(self, self.schedule in SCHEDULES, "schedule", f"it takes {', '.join(SCHEDULES)}")
        for field in ("learning_rate", "eps"):
            require(self, 0 < getattr(self, field) < math.inf, field, "it must be positive")
        for field in ("warmup", "decay", "final"):
            require(self, 0 <= getattr(self, field) <= 1, field, "it must be a fraction between 0 and 1")
        for field in ("b1", "b2", "momentum"):
            require(self, 0 <= getattr(self, field) < 1, field, "it must be at least 0 and less than 1")
        require(self, self.weight_decay >= 0, "weight_decay", "it cannot be negative")
        require(self, self.clip is None or self.clip > 0, "clip", "it must be positive, or None")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"Optimizer.decay is {self.decay}: with warmup, {self.warmup}, it exceeds the whole run")


# --- schedules -------------------------------------------------------------------------------------------------------


def _wsd(config: Optimizer, step: jax.Array) -> jax.Array:
    """1, then linearly to 0 over the last part."""
    return (config.steps - step) / max(config.decay * config.steps, 1)


def _cosine(config: Optimizer, step: jax.Array) -> jax.Array:
    """Half a cosine wave from 1 after the warmup to 0."""
    begin = config.warmup * config.steps
    progress = (step - begin) / max(config.steps - begin, 1)
    return 0.5 * (1 + jnp.cos(math.pi * jnp.clip(progress, 0, 1)))


SCHEDULES: dict[str, Callable[[Optimizer, jax.Array], jax.Array]] = {"wsd": _wsd, "cosine": _cosine}
"""What is left of the learning rate's way from peak to final, at a step."""


def learning_rate(config: Optimizer, step: Any) -> jax.Array:
    """The float32 learning rate of a step (int32, from 0): it reaches its peak with the last step of the warmup, and
    its final value after the last step of all.
    """
    step = jnp.asarray(step, jnp.float32)
    rising = jnp.minimum((step + 1) / max(config.warmup * config.steps, 1), 1)
    left = jnp.clip(SCHEDULES[config.schedule](config, step), 0, 1)
    return config.learning_rate * rising * (config.final + (1 - config.final) * left)


# --- parameters ------------------------------------------------------------------------------------------------------


def is_selection_bias(leaf: Leaf) -> bool:
    """Whether it is a router's selection bias, which balances loads and has no gradient."""
    return leaf.path[-2:] == SELECTION_BIAS


def decays(leaf: Leaf) -> bool:
    """Whether weight decay applies: to every matrix but the embedding."""
    return is_matrix(leaf) and leaf.spaces()[0] != "vocab"


def muon_axes(leaf: Leaf) -> Any:
    """Which axes of a parameter make up the rows and columns of Muon's matrix; None for what AdamW trains."""
    from optax.contrib import MuonDimensionNumbers

    if not is_matrix(leaf) or is_vocab(leaf) or "routes" in leaf.axes:
        return None
    return MuonDimensionNumbers(input_axes(leaf), output_axes(leaf))


def make_optimizer(config: Optimizer, spec: Spec, rules: Rules | None = None) -> Any:
    """The optax.GradientTransformation of the configuration for the parameters of this model.

    rules: by which they are spread over the mesh in force, None without one.
    """
    from optax.contrib import muon

    def group(leaf: Leaf) -> str:
        if is_selection_bias(leaf):
            return "none"
        return "muon" if config.name == "muon" and muon_axes(leaf) is not None else "adamw"

    def rate(step: Any) -> jax.Array:
        return learning_rate(config, step)

    decay = config.weight_decay
    groups = {
        "adamw": optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=decay, mask=tree_of(spec, decays)),
        "none": optax.set_to_zero(),
    }
    if config.name == "muon":
        dimensions = tree_of(spec, muon_axes)
        whole = muon(
            rate,
            beta=config.momentum,
            weight_decay=decay,
            muon_weight_dimension_numbers=dimensions,
            consistent_rms=0.2,
        )
        groups["muon"] = by_layer(whole, spec, rules)
    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip)
    return optax.chain(clip, optax.partition(groups, tree_of(spec, group)))
