"""Runs of tokens compressed into one entry each: DeepSeek-V4 (DeepSeek-AI 2026), section 2.3, eqs. 9-12 and 20-23.

Every `every` tokens of a document, C channel by channel weighed over the run, then normalised and rotated:

    entry_i = norm(sum over j of softmax_j(z_j + b_j) c_j)        c = x w,  z = x w'

With overlap a run is two runs wide: c and z have a second half, which an entry reads of its own tokens, while it reads
the first half of those of the run before. A run counts from the start of its document, and becomes an entry with its
last token: what is left over waits. Between calls wait the last tokens' c and z, one short of all that an entry reads.

Dimensions: B batch, L new tokens, P waiting tokens, M = P + L, N entries, T tokens of a run, W = T or 2 T tokens that
an entry reads, D width, E dimensions of an entry, U = E or 2 E of what is read of a token."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from .dense import attach, bias, project, weight
from .execution import Execution
from .norms import RMSNorm
from .rope import Rope, rotate
from .spec import Context

AXES = {"D": "width", "E": "head_dim", "U": "head_dim", "T": "taps", "B": "batch", "P": "taps", "N": "length"}

LAST = 2**31 - 1
"""A place after every other: that of a run that is none."""


class Runs(NamedTuple):
    """The runs that end among the new tokens, in order; there may be fewer than N.

    last_BN: the index of a run's last token among the new ones, which is past their end where there is no run.
    first_BN: the position in its document of its first token.
    """

    last_BN: jax.Array
    first_BN: jax.Array
    is_BN: jax.Array


def runs(context: Context, every: int, waiting: bool) -> Runs:
    """waiting: tokens of earlier calls may belong to the first run."""
    positions_BL = context.positions_BL
    length = positions_BL.shape[1]
    count = max(-(-length // every) if waiting else length // every, 1)
    ends_BL = context.real_BL() & ((positions_BL + 1) % every == 0)
    last_BL = jnp.sort(jnp.where(ends_BL, jnp.arange(length, dtype=jnp.int32), length), axis=1)
    last_BN = jnp.pad(last_BL, ((0, 0), (0, max(count - length, 0))), constant_values=length)[:, :count]
    at_BN = jnp.take_along_axis(positions_BL, jnp.minimum(last_BN, length - 1), axis=1)
    return Runs(last_BN, jnp.maximum(at_BN - (every - 1), 0), last_BN < length)


def weighed(c_BMU: jax.Array, z_BMU: jax.Array, bias_TU: jax.Array, found: Runs, dim: int, waiting: int) -> jax.Array:
    """The sums of all runs [B, N, E], float32; `waiting` tokens come before the new ones."""
    every, both = bias_TU.shape
    last_BN1 = jnp.minimum(found.last_BN, c_BMU.shape[1] - waiting - 1)[..., None] + waiting

    def read(x_BMU: jax.Array, back: int, channels: slice) -> jax.Array:  # [B, N, T, E]
        token_BNT = last_BN1 - back - (every - 1) + jnp.arange(every, dtype=jnp.int32)
        # A first run reads before its document's start, or the row's: what it finds there has no weight.
        rows: Any = jax.vmap(lambda x_MU, token_NT: x_MU[jnp.maximum(token_NT, 0)])
        read_BNTE: jax.Array = rows(x_BMU[..., channels], token_BNT).astype(jnp.float32)
        return read_BNTE

    own = slice(both - dim, both)
    c_BNWE = read(c_BMU, 0, own)
    z_BNWE = read(z_BMU, 0, own) + bias_TU[:, own]
    if both > dim:
        before = slice(0, dim)
        there_BN11 = (found.first_BN >= every)[..., None, None]
        z_BNTE = jnp.where(there_BN11, read(z_BMU, every, before) + bias_TU[:, before], -jnp.inf)
        c_BNWE = jnp.concatenate([read(c_BMU, every, before), c_BNWE], axis=2)
        z_BNWE = jnp.concatenate([z_BNTE, z_BNWE], axis=2)
    return jnp.sum(c_BNWE * jax.nn.softmax(z_BNWE, axis=2), axis=2)


def rotate_last(x_BLE: jax.Array, positions_BL: jax.Array, rope: Rope) -> jax.Array:
    """`rotate` of the last dimensions instead of the first."""
    keep = x_BLE.shape[-1] - rope.dim
    return jnp.concatenate([x_BLE[..., :keep], rotate(x_BLE[..., keep:], positions_BL, rope)], axis=-1)


def written(held_BNE: jax.Array, entries_BNE: jax.Array, found: Runs, every: int) -> jax.Array:
    """The entries of a cache with the new ones among them: entry i is the document's i-th run."""
    count = held_BNE.shape[1]
    place_BN = jnp.clip(jnp.where(found.is_BN, found.first_BN // every, count), 0, count)
    put: Any = jax.vmap(lambda held_NE, at_N, new_NE: held_NE.at[at_N].set(new_NE, mode="clip"))
    # What is no run goes to a place of its own behind the others, in bounds.
    held_BNE = jnp.pad(held_BNE, ((0, 0), (0, 1), (0, 0)))
    put_BNE: jax.Array = put(held_BNE, place_BN, entries_BNE.astype(held_BNE.dtype))[:, :-1]
    return put_BNE


class Pooled(NamedTuple):
    """All entries, new ones only where there is no cache, and which run each is: the place of its last token, beyond
    any query's where it is none.
    """

    entries_BNE: jax.Array
    ends_BN: jax.Array
    segments_BN: jax.Array | None


class CompressorShell(nn.Module):
    """Called with x, gives what there is to attend to, and what to keep: `entry_*`, all entries, `wait_*`, c and z."""

    dim: int
    every: int
    overlap: bool
    rope: Rope
    norm: RMSNorm
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[Pooled, dict[str, jax.Array]]:
        length, reach = x_BLD.shape[1], self.every * (1 + self.overlap)
        sizes = {"D": x_BLD.shape[-1], "U": self.dim * (1 + self.overlap), "T": self.every}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        parts = {"c": project("BLD,DU->BLU", x_BLD, w("w_DU", inputs="D"))}
        parts["z"] = project("BLD,DU->BLU", x_BLD, w("w_gate_DU", inputs="D"))
        bias_TU = bias(self, "bias_TU", sizes, Execution())
        rows = {}
        for name, part_BLU in parts.items():
            shape = (x_BLD.shape[0], reach - 1, part_BLU.shape[-1])
            held_BPU = jnp.zeros(shape, part_BLU.dtype) if cache is None else cache[f"{name}_BPU"]
            rows[name] = jnp.concatenate([held_BPU.astype(part_BLU.dtype), part_BLU], axis=1)
        found = runs(context, self.every, cache is not None)
        sums_BNE = weighed(rows["c"], rows["z"], bias_TU, found, self.dim, reach - 1)
        sums_BNE = sums_BNE.astype(x_BLD.dtype)
        entries_BNE = attach(self, self.norm.shell(self.execution, "E"), "entry_norm")(sums_BNE)
        entries_BNE = rotate_last(entries_BNE, found.first_BN, self.rope)
        kept = {f"{name}_BPU": row_BMU[:, length:] for name, row_BMU in rows.items()}
        if cache is None:
            segments_BL, last_BN = context.segments_BL, jnp.minimum(found.last_BN, length - 1)
            place_BN = jnp.where(found.is_BN, context.slots_L[last_BN], LAST)
            segments_BN = None if segments_BL is None else jnp.take_along_axis(segments_BL, last_BN, axis=1)
            return Pooled(entries_BNE, place_BN, segments_BN), kept | {"entry_BNE": entries_BNE}
        all_BNE = written(cache["entry_BNE"], entries_BNE, found, self.every)
        ends_N = jnp.arange(1, all_BNE.shape[1] + 1, dtype=jnp.int32) * self.every - 1
        ends_BN = jnp.broadcast_to(ends_N, all_BNE.shape[:2])
        return Pooled(all_BNE.astype(x_BLD.dtype), ends_BN, None), kept | {"entry_BNE": all_BNE}


def compressor_cache(
    batch: int, length: int, dim: int, every: int, overlap: bool, dtype: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a compressor keeps between calls."""
    wait = jax.ShapeDtypeStruct((batch, every * (1 + overlap) - 1, dim * (1 + overlap)), dtype)
    entry = jax.ShapeDtypeStruct((batch, max(length // every, 1), dim), dtype)
    return {"c_BPU": wait, "z_BPU": wait, "entry_BNE": entry}
