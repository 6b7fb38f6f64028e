"""One layer of depth: how attention and MLP meet the residual stream. A block maps a residual state to itself.

x + after(f(before(x))), then `outer` of the sum, for attention and then for the MLP. Which of the three norms exist
is the placement: pre (Xiong et al. 2020) has before; post (Vaswani et al. 2017) outer; sandwich (Ding et al. 2021;
Gemma 2 and 3) before and after; OLMo 2 (2025, section 3.1), a post-norm inside the residual, after.

The parallel block, x + attention(before(x)) + mlp(before(x)): GPT-J (Wang & Komatsuzaki 2021); PaLM, Chowdhery et al.
2022, section 2. A multiplier of what joins the residual: depth-muP, Yang et al. 2023; Granite 3 (2024).

A block whose state is not [batch, length, width] makes it of the embedding, `.open(x_BLD)`, and has a module that reads
what the last norm takes, `.close()` (hyper.py).

Dimensions: B batch, L length, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn

from .dense import attach
from .execution import Execution
from .norms import Norm
from .spec import Context

AXES = {"D": "width"}
PARTS = ("attention", "mlp")


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Attention and MLP, each times `scale` added to the residual, with the norms that are given around each."""

    before: Norm | None = None
    after: Norm | None = None
    outer: Norm | None = None
    scale: float = 1.0

    def shell(self, execution: Execution, attention: Any, mlp: Any) -> nn.Module:
        return ResidualShell(self, execution, attention, mlp)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Attention and MLP of the same input, normalised once, added to the residual together."""

    before: Norm | None = None

    def shell(self, execution: Execution, attention: Any, mlp: Any) -> nn.Module:
        return ParallelShell(self, execution, attention, mlp)


def pre_norm(norm: Norm, scale: float = 1.0) -> Residual:
    return Residual(before=norm, scale=scale)


def post_norm(norm: Norm) -> Residual:
    return Residual(outer=norm)


def sandwich_norm(norm: Norm) -> Residual:
    return Residual(before=norm, after=norm)


def inner_post_norm(norm: Norm) -> Residual:
    return Residual(after=norm)


class ResidualShell(nn.Module):
    spec: Residual
    execution: Execution
    attention: Any
    mlp: Any

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, Any] | None
    ) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
        entries, aux = {}, {}

        def norm(spec: Norm | None, name: str, x: jax.Array) -> jax.Array:
            return x if spec is None else attach(self, spec.shell(self.execution), name)(x)

        for part, layer in zip(PARTS, (self.attention, self.mlp), strict=True):
            y_BLD = norm(self.spec.before, f"{part}_before", x_BLD)
            held = None if cache is None else cache[part]
            y_BLD, entries[part], aux[part] = attach(self, layer.shell(self.execution), part)(y_BLD, context, held)
            y_BLD = norm(self.spec.after, f"{part}_after", y_BLD) * self.spec.scale
            x_BLD = norm(self.spec.outer, f"{part}_outer", x_BLD + y_BLD)
        return x_BLD, entries, aux


class ParallelShell(nn.Module):
    spec: Parallel
    execution: Execution
    attention: Any
    mlp: Any

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, Any] | None
    ) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
        entries, aux, before = {}, {}, self.spec.before
        y_BLD = x_BLD if before is None else attach(self, before.shell(self.execution), "before")(x_BLD)
        for part, layer in zip(PARTS, (self.attention, self.mlp), strict=True):
            held = None if cache is None else cache[part]
            f_BLD, entries[part], aux[part] = attach(self, layer.shell(self.execution), part)(y_BLD, context, held)
            x_BLD = x_BLD + f_BLD
        return x_BLD, entries, aux
