"""Chunked attention: a window that begins anew every so many tokens of a document, and does not move with the query
(Llama 4, Meta 2025). A query sees the keys of its own chunk at or before it: to them a chunk is a document.

Dimensions: as in attention.py.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .attention import AXES as AXES
from .attention import Attention
from .spec import require


@dataclass(frozen=True, kw_only=True)
class ChunkedAttention(Attention):
    """Attention whose chunks are `window` tokens long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.window is not None, "window", "a chunk has a length")

    def mean_keys(self, length: int) -> float:
        assert self.window is not None
        whole, rest = divmod(length, self.window)
        return (whole * self.window * (self.window + 1) / 2 + rest * (rest + 1) / 2) / length

    def parts(self, positions_BL: jax.Array, segments_BL: jax.Array | None) -> jax.Array | None:
        assert self.window is not None
        return chunks(positions_BL, segments_BL, self.window)


def chunks(positions_BL: jax.Array, segments_BL: jax.Array | None, size: int) -> jax.Array:
    """int32 [B, L]: the chunk of `size` tokens that a token is in, another in each document."""
    chunk_BL = jnp.maximum(positions_BL, 0) // size  # padding is before 0
    most = positions_BL.shape[1] // size + 1
    return chunk_BL if segments_BL is None else segments_BL * most + chunk_BL
