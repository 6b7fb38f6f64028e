"""Gated MLPs whose halves cannot grow beyond a limit: DeepSeek-V4 (DeepSeek-AI 2026), section 2.1, after gpt-oss
(OpenAI 2025). Of x, with a constant limit,

    down (silu(min(gate x, limit)) clip(up x, -limit, limit))

Dimensions: B batch, L length, D width, X experts, F ffn, R rows of one expert."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from .dense import project, weight
from .execution import KEPT, Execution
from .expert import GATED, Table
from .spec import Context, require

AXES = {"D": "width", "F": "ffn"}


@dataclass(frozen=True, kw_only=True)
class BoundedExpert:
    """limit: of what is gated, and of the gate from above."""

    limit: float = 10.0

    TABLE: ClassVar[Table] = GATED

    def __post_init__(self) -> None:
        require(self, self.limit > 0, "limit", "it must be positive")

    def __call__(self, params: tuple[jax.Array, ...], x_RD: jax.Array, weight_R1: jax.Array) -> jax.Array:
        gate_FD, up_FD, down_DF = params
        gate_RF, up_RF = checkpoint_name((jnp.dot(x_RD, gate_FD.T), jnp.dot(x_RD, up_FD.T)), KEPT)
        return jnp.dot(bounded(gate_RF, up_RF, self.limit) * weight_R1.astype(x_RD.dtype), down_DF.T)


def bounded(gate_F: jax.Array, up_F: jax.Array, limit: float) -> jax.Array:
    return jax.nn.silu(jnp.minimum(gate_F, limit)) * jnp.clip(up_F, -limit, limit)


@dataclass(frozen=True, kw_only=True)
class BoundedMLP:
    """The same through `ffn` hidden units, for all tokens."""

    ffn: int
    limit: float = 10.0

    def __post_init__(self) -> None:
        require(self, self.ffn > 0, "ffn", "it must be positive")
        require(self, self.limit > 0, "limit", "it must be positive")

    def shell(self, execution: Execution) -> nn.Module:
        return BoundedMLPShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


class BoundedMLPShell(nn.Module):
    spec: BoundedMLP
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        sizes = {"D": x_BLD.shape[-1], "F": self.spec.ffn}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        gate_BLF = project("BLD,DF->BLF", x_BLD, w("w_gate_DF", inputs="D"))
        up_BLF = project("BLD,DF->BLF", x_BLD, w("w_up_DF", inputs="D"))
        hidden_BLF = bounded(gate_BLF, up_BLF, self.spec.limit)
        return project("BLF,FD->BLD", hidden_BLF, w("w_down_FD", inputs="F")), {}, {}
