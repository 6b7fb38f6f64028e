"""Scale-corrected latents: LongCat-Flash (Meituan 2025), section 2.1.3.

A latent of rank r comes out of its norm with r numbers of size one; what is read out of it is then smaller than what a
full-width input would give by sqrt(r / width). Times sqrt(width / r), the variance no longer depends on the rank.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from .execution import Execution
from .norms import rms_norm
from .spec import require


@dataclass(frozen=True, kw_only=True)
class CorrectedNorm:
    """RMSNorm times sqrt(width / rank), for a latent of any rank in a model of this width; None for the width of the
    model that it is part of.
    """

    width: int | None = None
    eps: float = 1e-6

    OF_MODEL: ClassVar[tuple[str, ...]] = ("width",)

    def __post_init__(self) -> None:
        require(self, self.width is None or self.width > 0, "width", "it must be positive")
        require(self, self.eps > 0, "eps", "it must be positive")

    def shell(self, execution: Execution, axes: str = "D") -> nn.Module:
        require(self, self.width is not None, "width", "outside of a model it must be stated")
        return CorrectedNormShell(self, axes)


class CorrectedNormShell(nn.Module):
    spec: CorrectedNorm
    axis: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rank, width = x.shape[-1], self.spec.width or 0
        scale = self.param(f"scale_{self.axis}", nn.initializers.ones, (rank,), jnp.float32)
        return rms_norm(x, scale.astype(jnp.float32) * (width / rank) ** 0.5, self.spec.eps)
