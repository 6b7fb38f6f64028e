"""Rotary position embeddings and the ways to stretch them.

Rope: Su et al. 2021, eq. 34. Linear interpolation: Chen et al. 2023. YaRN: Peng et al. 2023, section 3.2, with
DeepSeek-V3's mscale. llama3: Llama 3 (Grattafiori et al. 2024), as released. LongRoPE: Ding et al. 2024, section 3.
Angles are float32, from integer positions: in bfloat16 257 is 256.

Dimensions: B batch, L length, R rotated dimensions; any head axes stand between L and R.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from .spec import require

Frequencies = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Every frequency divided by factor."""

    factor: float

    def stretch(self, frequencies: Frequencies, theta: float) -> Frequencies:
        return frequencies / self.factor

    def amplitude(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Llama3:
    """Low frequencies divided by factor, high ones kept, those between blended by how often they turn in
    original_length.
    """

    factor: float
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192

    def stretch(self, frequencies: Frequencies, theta: float) -> Frequencies:
        turns = self.original_length * frequencies / (2 * math.pi)
        keep = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequencies * (keep + (1 - keep) / self.factor)

    def amplitude(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """Frequencies that turn less than `slow` times in original_length divided by factor, those above `fast` kept, a
    ramp between.

    attention_factor scales cos and sin; None takes YaRN's 0.1 ln(factor) + 1, or DeepSeek's ratio of mscale to
    mscale_all_dim where both are given. truncate: the ends of the ramp are whole dimensions."""

    factor: float
    original_length: int
    fast: float = 32.0
    slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True

    def stretch(self, frequencies: Frequencies, theta: float) -> Frequencies:
        dim = 2 * len(frequencies)
        low, high = (
            dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.fast, self.slow)
        )
        low, high = (math.floor(low), math.ceil(high)) if self.truncate else (low, high)
        low, high = max(low, 0), min(high, dim - 1)
        ramp: Frequencies = np.clip((np.arange(len(frequencies)) - low) / ((high - low) or 0.001), 0, 1)
        return frequencies * (1 - ramp + ramp / self.factor)

    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.magnitude(self.mscale) / self.magnitude(self.mscale_all_dim)
        return self.magnitude(1.0)

    def magnitude(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class Proportional:
    """The highest `share` of the frequencies divided by factor, the lower ones nothing, so that those pairs stand
    still: p-RoPE (Barbero et al. 2024, section 6).
    """

    share: float = 1.0
    factor: float = 1.0

    def stretch(self, frequencies: Frequencies, theta: float) -> Frequencies:
        turning = np.arange(len(frequencies)) < int(self.share * 2 * len(frequencies) // 2)
        return np.where(turning, frequencies / self.factor, 0.0)

    def amplitude(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class LongRope:
    """Each frequency divided by a factor of its own, found by search: one of `short` in texts of up to original_length
    tokens, of `long` in longer ones.

    Which of the two cannot change on the way through a text, whose keys are rotated as they come: what counts is how
    many tokens there is room for, in the row or, when decoding, in the cache. A row computed whole, without padding,
    is thus exact.

    factor: how many times original_length the model takes.  attention_factor scales cos and sin; None takes
    LongRoPE's sqrt(1 + ln(factor) / ln(original_length))."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    factor: float
    original_length: int
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        require(self, len(self.long) == len(self.short), "long", f"it takes a factor for each of the {len(self.short)}")
        require(self, self.original_length > 1, "original_length", "it must be more than 1")

    def stretch(self, frequencies: Frequencies, theta: float) -> Frequencies:
        return frequencies / np.array(self.short, np.float64)

    def stretch_far(self, frequencies: Frequencies) -> Frequencies:
        return frequencies / np.array(self.long, np.float64)

    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length)) if self.factor > 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotate the first `dim` dimensions of each head (partial rope: fewer than there are).

    interleaved: pairs are (0, 1), (2, 3), ...; else dimension i goes with i + dim/2.
    """

    dim: int
    theta: float = 10_000.0
    scaling: Linear | Llama3 | Yarn | Proportional | LongRope | None = None
    interleaved: bool = False

    def __post_init__(self) -> None:
        require(self, self.dim > 0 and self.dim % 2 == 0, "dim", "rope rotates pairs, so it must be even and positive")
        require(self, self.theta > 0, "theta", "it must be positive")
        if isinstance(self.scaling, LongRope) and 2 * len(self.scaling.short) != self.dim:
            raise ValueError(
                f"LongRope.short has {len(self.scaling.short)} factors: a rope of {self.dim} takes half that"
            )


def frequencies(rope: Rope) -> Frequencies:
    """float64 [dim / 2]: radians a position."""
    plain = _plain(rope)
    return plain if rope.scaling is None else rope.scaling.stretch(plain, rope.theta)


def _plain(rope: Rope) -> Frequencies:
    plain: Frequencies = rope.theta ** -(np.arange(0, rope.dim, 2) / rope.dim)
    return plain


def frequencies_in(rope: Rope, room: int | jax.Array) -> jax.Array:
    """float32 [dim / 2]: radians a position where there is room for so many tokens."""
    near = jnp.asarray(frequencies(rope), jnp.float32)
    if not isinstance(rope.scaling, LongRope):
        return near
    far = jnp.asarray(rope.scaling.stretch_far(_plain(rope)), jnp.float32)
    return jnp.where(room > rope.scaling.original_length, far, near)


def rotate(x_BLR: jax.Array, positions_BL: jax.Array, rope: Rope, room: int | jax.Array | None = None) -> jax.Array:
    """x [batch, length, ..., at least dim] with its first `rope.dim` dimensions rotated by their positions (int32),
    in float32.

    room: for how many tokens the row has room; None if it is these."""
    radians_r = frequencies_in(rope, positions_BL.shape[1] if room is None else room)
    angles_BLr = positions_BL.astype(jnp.float32)[..., None] * radians_r
    angles_BLr = angles_BLr.reshape(*positions_BL.shape, *(1,) * (x_BLR.ndim - 3), -1)
    amplitude = 1.0 if rope.scaling is None else rope.scaling.amplitude()
    cos, sin = jnp.cos(angles_BLr) * amplitude, jnp.sin(angles_BLr) * amplitude
    turned, rest = x_BLR[..., : rope.dim].astype(jnp.float32), x_BLR[..., rope.dim :]
    if rope.interleaved:
        pairs = turned.reshape(*turned.shape[:-1], -1, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = jnp.split(turned, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned.astype(x_BLR.dtype), rest], axis=-1)
