"""The short causal convolution along the tokens of each channel, by itself: H3 (Fu et al. 2023), Mamba (Gu & Dao 2023).

y_t = sum over j < T of kernel_{T-1-j} x_{t-j}: the last tap is the token itself. What it keeps between calls is its
last T - 1 inputs. Padding counts as zero, and a document does not see the one packed before it.

Dimensions: B batch, L length, C channels (any number of axes), T taps."""

import jax
import jax.numpy as jnp

from .spec import Context


def convolve(
    x_BLC: jax.Array, kernel_CT: jax.Array, context: Context, held_BTC: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The convolved inputs [B, L, C], and the T - 1 inputs to hold for the next call; held_BTC: those of the last."""
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
