"""What decoding keeps: every entry with a slot axis is a ring, and a full cache is a ring that never wraps.

Token t of a row is written to slot t mod S of an entry with S slots (named S in its axes: `k_BKSE`), so slot j holds
the latest t with t mod S = j. Prompts are right-aligned: all rows write the same slot, and a row's first `pad_B`
slots hold nothing. An entry without a slot axis is a state, replaced whole.

Dimensions: R layers of a scan, B batch, L new tokens, S slots.
"""

import jax
import jax.numpy as jnp

from .spec import Context


def new_slots(context: Context) -> jax.Array:
    """int32 [B or 1, L]: the slots of the new tokens, -1 for padding."""
    slots_BL = context.slots_L[None]
    return slots_BL if context.pad_B is None else jnp.where(slots_BL < context.pad_B[:, None], -1, slots_BL)


def held_slots(context: Context, size: int) -> jax.Array:
    """int32 [B, S]: which token of its row each slot of a ring of this size holds, -1 for none."""
    if context.pad_B is None:
        raise ValueError("a cache needs the context to say how many slots of each row are padding")
    token_S = _latest(context.slots_L[0], size)
    return jnp.where(token_S[None] < context.pad_B[:, None], -1, token_S[None])


def store(entry: jax.Array, new: jax.Array, end: jax.Array, axis: int = 2) -> jax.Array:
    """Writes the L tokens before `end` into the ring: [R, B, L, ...] into [R, B, S, ...], or where the axis is another;
    L is at most S.

    One token is one update in place; more are gathered, as they may wrap.
    """
    size, length = entry.shape[axis], new.shape[axis]
    new = new.astype(entry.dtype)
    if length == 1:
        return jax.lax.dynamic_update_slice_in_dim(entry, new, (end - 1) % size, axis)
    source_S = _latest(end, size) - (end - length)
    taken = jnp.take(new, jnp.clip(source_S, 0, length - 1), axis=axis, mode="clip")
    fresh = (source_S >= 0).reshape(size, *(1,) * (entry.ndim - axis - 1))
    return jnp.where(fresh, taken, entry)


def after(slot: jax.Array, x: jax.Array) -> jax.Array:
    """`slot`, known only once x is computed, from what the cache held: then XLA knows that it is read before it is
    written, and writes in place. Without an order it copies the cache first, twice; of a barrier it knows nothing by
    then. So the order is in the data: nothing is less than -inf, which XLA does not use.
    """
    return slot + (x.reshape(-1)[0] < -jnp.inf).astype(slot.dtype)


def _latest(end: jax.Array, size: int) -> jax.Array:
    """int32 [S]: for each slot the last token before `end` that falls on it; negative where there is none."""
    return end - 1 - (end - 1 - jnp.arange(size, dtype=jnp.int32)) % size
