"""The short causal convolution along the tokens of each channel, by itself: H3 (Fu et al. 2023), Mamba (Gu & Dao 2023).

y_t = sum over j < T of kernel_{T-1-j} x_{t-j}: the last tap is the token itself. What it keeps between calls is its
last T - 1 inputs. Padding counts as zero, and a document does not see the one packed before it.

Dimensions: B batch, L length, C channels (any number of axes), T taps."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..sharding.rules import Rules
from .spec import Context
from .spread import Line, is_spread, line, spread


def convolve(
    x_BLC: jax.Array,
    kernel_CT: jax.Array,
    context: Context,
    held_BTC: jax.Array | None = None,
    rules: Rules | None = None,
    channels: Sequence[str | None] = (),
) -> tuple[jax.Array, jax.Array]:
    """The convolved inputs [B, L, C], and the T - 1 inputs to hold for the next call; held_BTC: those of the last.

    rules, channels: over which devices arrays are spread, and the logical axes of C. Those that share a sequence hand
    their last inputs on."""
    length, before = x_BLC.shape[1], kernel_CT.shape[-1] - 1
    shared = line(rules, length) if rules is not None and is_spread(rules) else None
    if rules is None or shared is None or held_BTC is not None or length // shared.devices < before:
        return _convolved(x_BLC, kernel_CT, context, held_BTC)

    def own(x_BLC: Any, kernel_CT: Any, positions_BL: Any, segments_BL: Any) -> jax.Array:
        inputs = _after_neighbour((x_BLC, positions_BL, segments_BL), before, shared)
        here = context._replace(positions_BL=inputs[1], segments_BL=inputs[2])
        first = jax.lax.axis_index(shared.axes) == 0
        x_BLC = inputs[0].at[:, :before].set(jnp.where(first, 0, inputs[0][:, :before]))
        return _convolved(x_BLC, kernel_CT, here, None)[0][:, before:]

    positions_BL = jnp.broadcast_to(context.positions_BL, x_BLC.shape[:2])
    row = "batch", "length"
    axes = ((*row, *channels), (*channels, None), row, row)
    y_BLC = spread(own, rules, (x_BLC, kernel_CT, positions_BL, context.segments_BL), axes, axes[0])
    real_BLC = context.real_BL().reshape(*x_BLC.shape[:2], *(1 for _ in channels))
    return y_BLC, jnp.where(real_BLC, x_BLC, 0)[:, length - before :]


def _after_neighbour(tree: Any, before: int, shared: Line) -> Any:
    """Arrays [B, L, ...] after the last `before` of the device before this one's; what the first one gets is not its
    own.
    """
    moves = [(i, (i + 1) % shared.devices) for i in range(shared.devices)]

    def joined(x_BL: jax.Array) -> jax.Array:
        last = jax.lax.ppermute(x_BL[:, x_BL.shape[1] - before :], shared.axes, moves)
        return jnp.concatenate([last, x_BL], axis=1)

    return jax.tree.map(joined, tree)


def _convolved(
    x_BLC: jax.Array, kernel_CT: jax.Array, context: Context, held_BTC: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    batch, length, *channels = x_BLC.shape
    taps = kernel_CT.shape[-1]
    x_BLC = jnp.where(context.real_BL().reshape(batch, length, *(1 for _ in channels)), x_BLC, 0)
    before_BTC = jnp.zeros((batch, taps - 1, *channels), x_BLC.dtype) if held_BTC is None else held_BTC
    row_BMC = jnp.concatenate([before_BTC.astype(x_BLC.dtype), x_BLC], axis=1)
    y_BLC = jnp.zeros_like(x_BLC)
    for tap in range(taps):
        seen_BLC = row_BMC[:, tap : tap + length]
        back = taps - 1 - tap
        if context.segments_BL is not None and back:
            own_BL = jnp.pad(context.segments_BL, ((0, 0), (back, 0)), constant_values=-1)[:, :length]
            own_BL = own_BL == context.segments_BL
            seen_BLC = jnp.where(own_BL.reshape(batch, length, *(1 for _ in channels)), seen_BLC, 0)
        y_BLC = y_BLC + seen_BLC * kernel_CT[..., tap]
    return y_BLC, row_BMC[:, length:]
