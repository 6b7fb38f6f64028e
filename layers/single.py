"""A layer with one mixer: attention or an MLP, not both. Nemotron-H (NVIDIA 2025, arXiv 2504.03624), section 2.1.

x + mixer(before(x)), where the other of the two is absent.

Dimensions: B batch, L length, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn

from .block import PARTS
from .dense import attach
from .execution import Execution
from .norms import Norm, RMSNorm
from .spec import Context

AXES = {"D": "width"}


@dataclass(frozen=True, kw_only=True)
class Absent:
    """The attention or MLP of a layer that has none: it gives nothing, keeps nothing, costs nothing."""

    def shell(self, execution: Execution) -> nn.Module:
        return AbsentShell()

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


class AbsentShell(nn.Module):
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        return x_BLD * 0, {}, {}


@dataclass(frozen=True, kw_only=True)
class Single:
    """The one mixer of the layer, of the input normalised, added to the residual."""

    before: Norm = RMSNorm()

    def shell(self, execution: Execution, attention: Any, mlp: Any) -> nn.Module:
        return SingleShell(self, execution, attention, mlp)


class SingleShell(nn.Module):
    spec: Single
    execution: Execution
    attention: Any
    mlp: Any

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, Any] | None
    ) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
        present = {p: m for p, m in zip(PARTS, (self.attention, self.mlp), strict=True) if not isinstance(m, Absent)}
        if len(present) != 1:
            raise ValueError(f"a Single block takes attention or an MLP and an Absent other, not {len(present)} mixers")
        entries: dict[str, Any] = {part: {} for part in PARTS}
        aux: dict[str, Any] = {part: {} for part in PARTS}
        y_BLD = attach(self, self.spec.before.shell(self.execution), "before")(x_BLD)
        for part, mixer in present.items():
            held = None if cache is None else cache[part]
            y_BLD, entries[part], aux[part] = attach(self, mixer.shell(self.execution), part)(y_BLD, context, held)
        return x_BLD + y_BLD, entries, aux
