"""Layers with a memory, on devices that share a sequence: each works on its own tokens, and only memories travel.

A memory that is updated linearly leaves a device's tokens as S' = A S + W, and a token reads o + R S of the memory S
before them. A layer's own rule gives all four at once: it is run from a memory that has, beside its channels of values,
one for each channel of a key, the identity, into which nothing is written. Then all devices' A and W are gathered,
[E, E + U] a head, and each device takes the steps up to its own: the sequence parallelism of linear attention (Sun et
al. 2024, "Linear attention sequence parallelism") for any linear rule, in one exchange.

Dimensions: B batch, L tokens of a device, K heads of keys, G memories for each, E channels of a key, U of a value."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..sharding.rules import Rules
from .spec import Context
from .spread import Axes, Line, is_spread, line, spread_all

Rule = Callable[[Any, Context, jax.Array | None], tuple[jax.Array, jax.Array]]
"""(tokens, context, memory_BKGEU or None for an empty one) -> what each token reads [B, L, K, G, U], and the memory
after the last. Tokens are a NamedTuple of arrays with their axes in their names, k_BLKE and v_BLKGU among them."""

AXES = {"B": "batch", "L": "length", "K": "kv_heads", "G": "q_per_kv"}


def relayed(
    rule: Rule, tokens: Any, context: Context, memory_BKGEU: jax.Array | None, rules: Rules | None
) -> tuple[jax.Array, jax.Array]:
    """`rule(tokens, context, memory_BKGEU)`, by each device of its own tokens where several share a sequence that
    starts from an empty memory.
    """
    length = tokens.v_BLKGU.shape[1]
    shared = line(rules, length) if rules is not None and is_spread(rules) else None
    if rules is None or shared is None or memory_BKGEU is not None or length == shared.devices:
        return rule(tokens, context, memory_BKGEU)

    def own(positions_BL: jax.Array, segments_BL: jax.Array | None, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        here = context._replace(positions_BL=positions_BL, segments_BL=segments_BL)
        return _own(rule, type(tokens)(*arrays), here, shared)

    def axes(name: str) -> Axes:
        return tuple(AXES.get(letter) for letter in name.rpartition("_")[2])

    positions_BL = jnp.broadcast_to(context.positions_BL, tokens.v_BLKGU.shape[:2])
    names = ("positions_BL", "segments_BL", *type(tokens)._fields)
    arrays = (positions_BL, context.segments_BL, *tokens)
    results = axes("read_BLKGU"), axes("memory_BKGEU")
    read_BLKGU, memory_BKGEU = spread_all(own, rules, arrays, [axes(name) for name in names], results)
    return read_BLKGU, memory_BKGEU


def _own(rule: Rule, tokens: Any, context: Context, shared: Line) -> tuple[jax.Array, jax.Array]:
    """What this device's tokens read, and the memory after those of all devices."""
    batch, _, keys, group, values = tokens.v_BLKGU.shape
    size = tokens.k_BLKE.shape[-1]
    heads = batch, keys, group
    empty_BKGEU = jnp.zeros((*heads, size, values), jnp.float32)
    start = jnp.concatenate([empty_BKGEU, jnp.broadcast_to(jnp.eye(size), (*heads, size, size))], axis=-1)
    widened = tokens._replace(v_BLKGU=jnp.pad(tokens.v_BLKGU, ((0, 0),) * 4 + ((0, size),)))
    read, end = rule(widened, context, start)
    own_BLKGU, of_before_BLKGE = read[..., :values], read[..., values:]
    goes_on_B = jnp.ones(batch, bool)
    if context.segments_BL is not None:
        moves = [(i, (i + 1) % shared.devices) for i in range(shared.devices)]
        last_B = jax.lax.ppermute(context.segments_BL[:, -1], shared.axes, moves)
        goes_on_B = last_B == context.segments_BL[:, 0]
    index = jax.lax.axis_index(shared.axes)

    def step(carry: Any, device: Any) -> Any:
        memory_BKGEU, own_before_BKGEU = carry
        j, end, goes_on_B = device
        memory_BKGEU = jnp.where(goes_on_B[:, None, None, None, None], memory_BKGEU, 0)
        own_before_BKGEU = jnp.where(j == index, memory_BKGEU, own_before_BKGEU)
        written_BKGEU, kept_BKGEE = end[..., :values], end[..., values:]
        return (kept_BKGEE @ memory_BKGEU + written_BKGEU, own_before_BKGEU), None

    devices = jnp.arange(shared.devices), *(jax.lax.all_gather(x, shared.axes) for x in (end, goes_on_B))
    (memory_BKGEU, before_BKGEU), _ = jax.lax.scan(step, (empty_BKGEU, empty_BKGEU), devices)
    return own_BLKGU + jnp.einsum("BLKGE,BKGEU->BLKGU", of_before_BLKGE, before_BKGEU), memory_BKGEU
