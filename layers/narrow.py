"""Experts in a space narrower than the residual, so that more of them cost the same: Nemotron 3 (NVIDIA 2025), its
latent mixture of experts. The router reads the residual itself:

    y = up(experts(down x; routed by x)) + shared(x)

Dimensions: B batch, L length, D width, N width of the experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from .dense import attach, bias, project, weight
from .execution import Execution
from .mlp import GatedMLP
from .moe import MoE
from .plain import MLP
from .router import AnyRouter
from .spec import Context, require

AXES = {"D": "width", "N": "latent_dim"}


@dataclass(frozen=True, kw_only=True)
class NarrowMoE:
    """`experts` at a width of `width`, beside an MLP `shared` by all tokens at the full one.

    bias: whether the way down and the way up add one.
    """

    width: int
    experts: MoE
    shared: GatedMLP | MLP | None = None
    bias: bool = False

    def __post_init__(self) -> None:
        require(self, self.width > 0, "width", "it must be positive")
        require(self, self.experts.shared is None, "experts", "what is shared stays outside, at the full width")

    @property
    def router(self) -> AnyRouter:
        return self.experts.router

    def shell(self, execution: Execution) -> nn.Module:
        return NarrowMoEShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def flops(self, length: int) -> float:
        return 0.0


class NarrowMoEShell(nn.Module):
    spec: NarrowMoE
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s, sizes = self.spec, {"D": x_BLD.shape[-1], "N": self.spec.width}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        b = partial(bias, self, sizes=sizes, execution=self.execution)
        x_BLN = project("BLD,DN->BLN", x_BLD, w("w_in_DN", inputs="D"))
        x_BLN = x_BLN + b("b_in_N") if s.bias else x_BLN
        y_BLN, _, aux = attach(self, s.experts.shell(self.execution), "experts")(x_BLN, context, None, x_BLD)
        y_BLD = project("BLN,ND->BLD", y_BLN, w("w_out_ND", inputs="N"))
        y_BLD = y_BLD + b("b_out_D") if s.bias else y_BLD
        if s.shared is not None:
            y_BLD = y_BLD + attach(self, s.shared.shell(self.execution), "shared")(x_BLD, context, None)[0]
        return y_BLD, {}, {"experts": aux}
