"""Shortcut-connected experts: Cai et al. 2024 (ScMoE); LongCat-Flash (Meituan 2025), section 2.1.2.

A layer has two attentions and two MLPs. The experts read what the first MLP reads, and their output joins the residual
only at the end of the layer, so that sending tokens to experts can overlap with all that lies between:

    h = x + attention(norm(x))        u = norm(h)
    h + first(u) + second_attention(norm(.)) + second(norm(.)) + experts(u)

where each norm reads the sum to its left. `ShortcutBlock` is the first line, `Shortcut` what is added in the second.

Dimensions: B batch, L length, D width."""

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
class ShortcutBlock:
    """Pre-norm attention, then an MLP that sees the residual itself, each added to it."""

    before: Norm = RMSNorm()

    def shell(self, execution: Execution, attention: Any, mlp: Any) -> nn.Module:
        return ShortcutBlockShell(self, execution, attention, mlp)


class ShortcutBlockShell(nn.Module):
    spec: ShortcutBlock
    execution: Execution
    attention: Any
    mlp: Any

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, Any] | None
    ) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
        entries, aux = {}, {}
        y_BLD = attach(self, self.spec.before.shell(self.execution), "attention_before")(x_BLD)
        for part, layer in zip(PARTS, (self.attention, self.mlp), strict=True):
            held = None if cache is None else cache[part]
            y_BLD, entries[part], aux[part] = attach(self, layer.shell(self.execution), part)(y_BLD, context, held)
            x_BLD = y_BLD = x_BLD + y_BLD
        return x_BLD, entries, aux


@dataclass(frozen=True, kw_only=True)
class Shortcut:
    """What follows the first attention of a layer: an MLP, a second attention and MLP, and experts beside all three."""

    first: Any
    attention: Any
    second: Any
    experts: Any
    norm: Norm = RMSNorm()

    def shell(self, execution: Execution) -> nn.Module:
        return ShortcutShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        entries: dict[str, jax.ShapeDtypeStruct] = self.attention.cache(batch, length, dtype)
        return entries

    def flops(self, length: int) -> float:
        return float(sum(part.flops(length) for part in (self.first, self.attention, self.second, self.experts)))


class ShortcutShell(nn.Module):
    spec: Shortcut
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
        s = self.spec

        def normed(name: str, x_BLD: jax.Array) -> jax.Array:
            y_BLD: jax.Array = attach(self, s.norm.shell(self.execution), f"{name}_norm")(x_BLD)
            return y_BLD

        def part(name: str, u_BLD: jax.Array, held: Mapping[str, jax.Array] | None = None) -> Any:
            return attach(self, getattr(s, name).shell(self.execution), name)(u_BLD, context, held)

        u_BLD = normed("first", x_BLD)
        late_BLD, _, aux = part("experts", u_BLD)
        y_BLD, _, _ = part("first", u_BLD)
        f_BLD, entries, _ = part("attention", normed("attention", x_BLD + y_BLD), cache)
        y_BLD = y_BLD + f_BLD
        f_BLD, _, _ = part("second", normed("second", x_BLD + y_BLD))
        return y_BLD + f_BLD + late_BLD, entries, {"experts": aux}
