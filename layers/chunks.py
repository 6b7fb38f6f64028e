"""A sequence in chunks, for layers whose memory decays: what is left of each token and of the memory at each other.

Within a chunk tokens meet in products; between chunks the memory alone travels (Dao & Gu 2024, "Transformers are SSMs",
section 6; Yang et al. 2024, "Gated linear attention", section 4). A packed document starts from an empty memory.

Dimensions: B batch, L length, N chunks, C tokens of a chunk as queries and M as keys, K heads of queries and keys, G
memories for each, E channels of a key (of a decay, E or 1), U channels of a value."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Decays(NamedTuple):
    """kept: log of what is left since the chunk began.  seen: which tokens m a token c may see.
    into: what is left at c of the memory before the chunk.  left: what is left of c at the end of the chunk."""

    kept_NBKGCE: jax.Array
    seen_NBCM: jax.Array
    into_NBKGCE: jax.Array
    left_NBKGCE: jax.Array


def fold(x_BL: jax.Array, chunk: int) -> jax.Array:
    """[B, L, ..., last] -> [N, B, ..., C, last]; zeros follow where the chunks are longer."""
    x = jnp.pad(x_BL, [(0, 0), (0, -x_BL.shape[1] % chunk)] + [(0, 0)] * (x_BL.ndim - 2))
    x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
    return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 2, -2)


def unfold(x_NBKGCU: jax.Array, length: int) -> jax.Array:
    """The inverse: [B, L, K, G, U]."""
    x_BNCKGU = jnp.moveaxis(jnp.moveaxis(x_NBKGCU, -2, 2), 0, 1)
    return x_BNCKGU.reshape(x_BNCKGU.shape[0], -1, *x_BNCKGU.shape[3:])[:, :length]


def decays(decay_BLKGE: jax.Array, segments_BL: jax.Array | None, chunk: int) -> Decays:
    """decay_BLKGE: log of what is kept of the memory before a token, at most 0, float32."""
    kept_NBKGCE = jnp.cumsum(fold(decay_BLKGE, chunk), axis=-2)
    document_NBC = _documents(segments_BL, kept_NBKGCE.shape[0], kept_NBKGCE.shape[1], chunk)
    same_NBCM = document_NBC[..., :, None] == document_NBC[..., None, :]
    first = (document_NBC == 0)[:, :, None, None, :, None]
    last = same_NBCM[:, :, -1][:, :, None, None, :, None]
    return Decays(
        kept_NBKGCE,
        same_NBCM & jnp.tril(jnp.ones((chunk, chunk), bool)),
        jnp.where(first, jnp.exp(kept_NBKGCE), 0),
        jnp.where(last, jnp.exp(kept_NBKGCE[..., -1:, :] - kept_NBKGCE), 0),
    )


def decayed(x_NBKCE: jax.Array, y_NBKME: jax.Array, kept_NBKGCE: jax.Array, seen_NBCM: jax.Array) -> jax.Array:
    """x_c . y_m where seen, each channel by what is left of it from m to c: [N, B, K, G, C, M]."""
    left_NBKGCME = kept_NBKGCE[..., :, None, :] - kept_NBKGCE[..., None, :, :]
    # Only differences are exponentiated, and none that would grow: exp of one token's own share may be infinite.
    left_NBKGCME = jnp.exp(jnp.where(seen_NBCM[:, :, None, None, ..., None], left_NBKGCME, -jnp.inf))
    if kept_NBKGCE.shape[-1] == 1:
        return jnp.einsum("NBKCE,NBKME->NBKCM", x_NBKCE, y_NBKME)[:, :, :, None] * left_NBKGCME[..., 0]
    pairs_NBKCME = x_NBKCE[..., :, None, :] * y_NBKME[..., None, :, :]
    return jnp.sum(pairs_NBKCME[:, :, :, None] * left_NBKGCME, axis=-1)


def _documents(segments_BL: jax.Array | None, chunks: int, batch: int, chunk: int) -> jax.Array:
    """int32 [N, B, C]: how many documents have begun since the chunk did; the row's first one goes on from before."""
    if segments_BL is None:
        return jnp.zeros((chunks, batch, chunk), jnp.int32)
    segments_BL = jnp.pad(segments_BL, ((0, 0), (0, chunks * chunk - segments_BL.shape[1])), mode="edge")
    starts_BL = jnp.pad(segments_BL[:, 1:] != segments_BL[:, :-1], ((0, 0), (1, 0)))
    return jnp.moveaxis(jnp.cumsum(starts_BL.reshape(batch, chunks, chunk), axis=-1, dtype=jnp.int32), 1, 0)
