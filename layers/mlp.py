"""The gated MLP: Shazeer 2020, "GLU variants improve Transformer", eq. 6.

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


@dataclass(frozen=True, kw_only=True)
class GatedMLP:
    """down(activation(gate x) * up x), through `ffn` hidden units."""

    ffn: int
    activation: str = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        require(self, self.ffn > 0, "ffn", "it must be positive")
        require(self, self.activation in ACTIVATIONS, "activation", f"it takes {', '.join(ACTIVATIONS)}")

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
        hidden_BLF = ACTIVATIONS[self.spec.activation](gate_BLF) * up_BLF
        y_BLD = project("BLF,FD->BLD", hidden_BLF, w("w_down_FD", inputs="F"))
        return y_BLD + b("b_down_D") if self.spec.bias else y_BLD, {}, {}
