"""Hyper-connections: a residual of several streams (Zhu et al. 2024, arXiv 2409.19606), here constrained to a manifold,
mHC (Xie et al. 2025, arXiv 2512.24880, eqs. 5-9), as in DeepSeek-V4. With streams x_n, around f, attention or MLP:

    x'_m = post_m f(norm(sum_n pre_n x_n)) + sum_n mix_nm x_n

pre, post and mix are read out of the streams themselves. Rows and columns of mix are made to sum to one (Sinkhorn &
Knopp 1967), so that no depth of layers lets the streams grow. All of this in float32.

The state between blocks is [batch, length, streams, width]: `open` makes it of the embedding, `close` reads what the
last norm takes.

Dimensions: B batch, L length, N and M streams, D width, X what is read out: pre and post of each stream, mix of each
pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .block import PARTS
from .dense import attach
from .execution import Execution
from .norms import Norm, RMSNorm, rms_norm
from .spec import Context, require

AXES = {"D": "width", "N": "streams", "X": "mixes"}

START = 0.01
"""By how much what is read out counts at first: the streams then mix evenly, whatever they hold."""


@dataclass(frozen=True, kw_only=True)
class HyperConnections:
    """Attention and MLP, each behind a norm, between `streams` streams.

    steps: of Sinkhorn & Knopp.  eps: added to what is divided by.  norm_eps: of the norm of all streams together."""

    norm: Norm = RMSNorm()
    streams: int = 4
    steps: int = 20
    eps: float = 1e-6
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in ("streams", "steps", "eps", "norm_eps"):
            require(self, getattr(self, field) > 0, field, "it must be positive")

    def shell(self, execution: Execution, attention: Any, mlp: Any) -> nn.Module:
        return HyperConnectionsShell(self, execution, attention, mlp)

    def open(self, x_BLD: jax.Array) -> jax.Array:
        """The state of the first block [batch, length, streams, width]: every stream is the embedding."""
        return jnp.broadcast_to(x_BLD[:, :, None], (*x_BLD.shape[:2], self.streams, x_BLD.shape[-1]))

    def close(self) -> nn.Module:
        """Called with the state of the last block, gives [batch, length, width]."""
        return CloseShell(self)


def doubly_stochastic(mix_BLNM: jax.Array, steps: int, eps: float) -> jax.Array:
    """The softmax over M, then columns and rows in turn divided by their sums; columns last."""
    mix_BLNM = jax.nn.softmax(mix_BLNM, axis=-1) + eps
    for step in range(steps):
        if step:
            mix_BLNM = mix_BLNM / (jnp.sum(mix_BLNM, axis=-1, keepdims=True) + eps)
        mix_BLNM = mix_BLNM / (jnp.sum(mix_BLNM, axis=-2, keepdims=True) + eps)
    return mix_BLNM


def collapsed(x_BLND: jax.Array, pre_BLN: jax.Array) -> jax.Array:
    return jnp.einsum("BLN,BLND->BLD", pre_BLN, x_BLND.astype(jnp.float32)).astype(x_BLND.dtype)


class ReadShell(nn.Module):
    """Groups of numbers read out of the streams, each times a gain of its own, and shifted: float32 [B, L, size]."""

    spec: HyperConnections
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x_BLND: jax.Array) -> list[jax.Array]:
        streams, width = x_BLND.shape[2:]
        shape, total = (streams, width), sum(self.sizes)
        deviation = (streams * width) ** -0.5
        w_NDX = self.param("w_NDX", nn.initializers.normal(deviation), (*shape, total), jnp.float32)
        bias_X = self.param("bias_X", nn.initializers.zeros, (total,), jnp.float32)
        gain_G = self.param("gain_G", nn.initializers.constant(START), (len(self.sizes),), jnp.float32)
        x_BLND = rms_norm(x_BLND.astype(jnp.float32), None, self.spec.norm_eps, axes=2)
        read_BLX = jnp.einsum("BLND,NDX->BLX", x_BLND, w_NDX.astype(jnp.float32))
        gains = zip(gain_G.astype(jnp.float32), self.sizes, strict=True)
        gain_X = jnp.concatenate([jnp.broadcast_to(gain, (size,)) for gain, size in gains])
        read_BLX = read_BLX * gain_X + bias_X.astype(jnp.float32)
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes) - 1)]
        return jnp.split(read_BLX, ends, axis=-1)


class HyperConnectionsShell(nn.Module):
    spec: HyperConnections
    execution: Execution
    attention: Any
    mlp: Any

    @nn.compact
    def __call__(
        self, x_BLND: jax.Array, context: Context, cache: Mapping[str, Any] | None
    ) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
        s, n, entries, aux = self.spec, self.spec.streams, {}, {}
        for part, layer in zip(PARTS, (self.attention, self.mlp), strict=True):
            pre_BLN, post_BLN, mix_BLX = ReadShell(s, (n, n, n * n), name=f"{part}_streams")(x_BLND)
            mix_BLNM = doubly_stochastic(mix_BLX.reshape(*mix_BLX.shape[:2], n, n), s.steps, s.eps)
            x_BLD = collapsed(x_BLND, jax.nn.sigmoid(pre_BLN) + s.eps)
            x_BLD = attach(self, s.norm.shell(self.execution), f"{part}_before")(x_BLD)
            held = None if cache is None else cache[part]
            y_BLD, entries[part], aux[part] = attach(self, layer.shell(self.execution), part)(x_BLD, context, held)
            kept_BLND = jnp.einsum("BLNM,BLND->BLMD", mix_BLNM, x_BLND.astype(jnp.float32))
            added_BLND = 2 * jax.nn.sigmoid(post_BLN)[..., None] * y_BLD.astype(jnp.float32)[:, :, None]
            x_BLND = (kept_BLND + added_BLND).astype(x_BLND.dtype)
        return x_BLND, entries, aux


class CloseShell(nn.Module):
    spec: HyperConnections

    @nn.compact
    def __call__(self, x_BLND: jax.Array) -> jax.Array:
        (pre_BLN,) = ReadShell(self.spec, (self.spec.streams,), name="read")(x_BLND)
        return collapsed(x_BLND, jax.nn.sigmoid(pre_BLN) + self.spec.eps)
