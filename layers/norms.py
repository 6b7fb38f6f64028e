"""Normalisation: RMSNorm, LayerNorm and L2, in float32.

RMSNorm: Zhang & Sennrich 2019, eq. 4; its zero-centred scale (the weight is 1 + scale) is Gemma's. LayerNorm: Ba et
al. 2016. QK-norm, a norm on queries and keys before their product: Henry et al. 2020; per head in Qwen3 and Gemma 3,
over the full width of all heads in OLMo 2 (2025, section 3.1).

A norm scales the axes that its owner names; they are the last ones of x.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from .execution import Execution
from .spec import require

AXES = {"D": "width"}


@dataclass(frozen=True, kw_only=True)
class RMSNorm:
    """Divide by the root mean square.

    zero_centred: the weight is 1 + scale, so that scale starts at, and decays to, nothing.
    """

    eps: float = 1e-6
    zero_centred: bool = False

    def __post_init__(self) -> None:
        require(self, self.eps > 0, "eps", "it must be positive")

    def shell(self, execution: Execution, axes: str = "D") -> nn.Module:
        return RMSNormShell(self, axes)


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """Subtract the mean, divide by the standard deviation, scale, and shift where there is a bias."""

    eps: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        require(self, self.eps > 0, "eps", "it must be positive")

    def shell(self, execution: Execution, axes: str = "D") -> nn.Module:
        return LayerNormShell(self, axes)


@dataclass(frozen=True, kw_only=True)
class L2Norm:
    """Divide by the root mean square, with no parameter (Llama 4's QK-norm)."""

    eps: float = 1e-6

    def __post_init__(self) -> None:
        require(self, self.eps > 0, "eps", "it must be positive")

    def shell(self, execution: Execution, axes: str = "D") -> nn.Module:
        return L2NormShell(self, axes)


Norm = RMSNorm | LayerNorm | L2Norm


@dataclass(frozen=True, kw_only=True)
class QKNorm:
    """A norm on queries and keys.

    over: "head" (each head on its own, scale shared by all) or "width" (all heads as one vector).
    after_rope: what rope has rotated is normalised (Hunyuan, Llama 4), not what it will rotate.
    """

    norm: Norm = RMSNorm()
    over: str = "head"
    after_rope: bool = False

    def __post_init__(self) -> None:
        require(self, self.over in ("head", "width"), "over", "it takes head or width")

    def shell(self, execution: Execution, axes: str) -> nn.Module:
        """The norm for an array whose head axes are `axes`, the last of them the head dimension."""
        return self.norm.shell(execution, axes if self.over == "width" else axes[-1])


def rms_norm(x: jax.Array, scale: jax.Array | None, eps: float, axes: int = 1) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last `axes` axes, computed in float32, returned in x's dtype."""
    x_f32 = x.astype(jnp.float32)
    over = tuple(range(-axes, 0))
    y = x_f32 * jax.lax.rsqrt(jnp.mean(jnp.square(x_f32), axis=over, keepdims=True) + eps)
    return (y if scale is None else y * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, axes: int = 1) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last `axes` axes, in float32, returned in x's
    dtype.
    """
    x_f32 = x.astype(jnp.float32)
    over = tuple(range(-axes, 0))
    centred = x_f32 - jnp.mean(x_f32, axis=over, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=over, keepdims=True) + eps)
    y = y * scale.astype(jnp.float32)
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(x.dtype)


class RMSNormShell(nn.Module):
    spec: RMSNorm
    axes: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.zeros if self.spec.zero_centred else nn.initializers.ones
        scale = self.param(f"scale_{self.axes}", start, x.shape[-len(self.axes) :], jnp.float32)
        scale = scale.astype(jnp.float32)
        return rms_norm(x, 1 + scale if self.spec.zero_centred else scale, self.spec.eps, len(self.axes))


class LayerNormShell(nn.Module):
    spec: LayerNorm
    axes: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-len(self.axes) :]
        scale = self.param(f"scale_{self.axes}", nn.initializers.ones, shape, jnp.float32)
        bias = self.param(f"bias_{self.axes}", nn.initializers.zeros, shape, jnp.float32) if self.spec.bias else None
        return layer_norm(x, scale, bias, self.spec.eps, len(self.axes))


class L2NormShell(nn.Module):
    spec: L2Norm
    axes: str

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, None, self.spec.eps, len(self.axes))
