"""The gated MLP: Shazeer 2020, "GLU variants improve Transformer", eq. 6.

What a gate does to what it gates is an activation of the gate alone, by name, or a function of both (bounded.py).

Dimensions: B batch, L length, D width, F ffn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from .dense import bias, project, weight
from .execution import Execution
from .spec import Context, require

AXES = {"D": "width", "F": "ffn"}

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
}

Gate = Callable[[jax.Array, jax.Array], jax.Array]
"""(gate x, up x) -> hidden, element by element: a frozen dataclass, since it is part of a spec."""


def is_activation(activation: Any) -> bool:
    """Whether a gated MLP or expert takes it."""
    return activation in ACTIVATIONS if isinstance(activation, str) else callable(activation)


def hidden(activation: str | Gate, gate_F: jax.Array, up_F: jax.Array) -> jax.Array:
    """What the gate lets through, in the arrays' own shape."""
    return ACTIVATIONS[activation](gate_F) * up_F if isinstance(activation, str) else activation(gate_F, up_F)


@dataclass(frozen=True, kw_only=True)
class GatedMLP:
    """down(activation(gate x) * up x), or down(activation(gate x, up x)), through `ffn` hidden units."""

    ffn: int
    activation: str | Gate = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        require(self, self.ffn > 0, "ffn", "it must be positive")
        require(self, is_activation(self.activation), "activation", f"it takes {', '.join(ACTIVATIONS)}, or a Gate")

    def shell(self, execution: Execution) -> nn.Module:
        return GatedMLPShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


class GatedMLPShell(nn.Module):
    spec: GatedMLP
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        sizes = {"D": x_BLD.shape[-1], "F": self.spec.ffn}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        b = partial(bias, self, sizes=sizes, execution=self.execution)
        gate_BLF = project("BLD,DF->BLF", x_BLD, w("w_gate_DF", inputs="D"))
        up_BLF = project("BLD,DF->BLF", x_BLD, w("w_up_DF", inputs="D"))
        if self.spec.bias:
            gate_BLF, up_BLF = gate_BLF + b("b_gate_F"), up_BLF + b("b_up_F")
        hidden_BLF = hidden(self.spec.activation, gate_BLF, up_BLF)
        y_BLD = project("BLF,FD->BLD", hidden_BLF, w("w_down_FD", inputs="F"))
        return y_BLD + b("b_down_D") if self.spec.bias else y_BLD, {}, {}
