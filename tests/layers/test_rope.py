"""Rope turns pairs by position times frequency; every way to stretch the frequencies equals its definition."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.attention import Attention
from archzoo.layers.rope import Linear, Llama3, LongRope, Rope, Yarn, frequencies, rotate

from . import reference
from .conftest import HALF, LAYER, close, normal

DIM, THETA = 16, 10_000.0
PLAIN = np.array([THETA ** (-2 * i / DIM) for i in range(DIM // 2)])
YARN = Yarn(factor=40.0, original_length=4096)

turned = jax.jit(rotate, static_argnames="rope")


def stretch(scaling: Any) -> Any:
    """What each frequency is multiplied by."""
    return frequencies(Rope(dim=DIM, theta=THETA, scaling=scaling)) / PLAIN


def test_plain_frequencies_are_powers_of_theta() -> None:
    close(stretch(None), np.ones(DIM // 2), 1e-12)


def test_linear_interpolation_divides_every_frequency() -> None:
    close(stretch(Linear(factor=8.0)), np.full(DIM // 2, 1 / 8), 1e-12)


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones() -> None:
    scaling = Llama3(factor=8.0, low=1.0, high=4.0, original_length=512)
    expected = []
    for f in PLAIN:
        wavelength = 2 * math.pi / f
        if wavelength < 512 / 4:
            expected.append(1.0)
        elif wavelength > 512 / 1:
            expected.append(1 / 8)
        else:
            smooth = (512 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) / 8 + smooth)
    assert 1.0 > sorted(set(expected))[1] > 1 / 8  # one is in between
    close(stretch(scaling), np.array(expected), 1e-12)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_ramps_between_the_dimensions_that_turn_fast_and_slow(truncate: bool) -> None:
    scaling = Yarn(factor=40.0, original_length=4096, truncate=truncate)
    fast, slow = (reference.correction_index(DIM, THETA, 4096, turns) for turns in (32.0, 1.0))
    if truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    assert 0 < fast < slow < DIM // 2 - 1
    ramp = [min(max((i - fast) / (slow - fast), 0.0), 1.0) for i in range(DIM // 2)]
    assert (ramp[0], ramp[-1]) == (0, 1)
    close(stretch(scaling), np.array([1 - r + r / 40 for r in ramp]), 1e-9)


@pytest.mark.parametrize(
    ("fields", "amplitude"),
    [
        ({}, 0.1 * math.log(40) + 1),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.707, "mscale_all_dim": 1.0}, (0.0707 * math.log(40) + 1) / (0.1 * math.log(40) + 1)),
        ({"attention_factor": 1.25, "mscale": 0.5, "mscale_all_dim": 1.0}, 1.25),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_yarn_scales_what_it_turns(fields: dict[str, Any], amplitude: float) -> None:
    scaling = Yarn(**{"factor": 40.0, "original_length": 4096, **fields})
    x = normal(0, 1, 3, DIM)
    y = turned(x, np.zeros((1, 3), np.int32), Rope(dim=DIM, scaling=scaling))
    close(y, x.astype(np.float64) * amplitude, LAYER)  # at position 0 only the amplitude is left


LONG = LongRope(
    short=(1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0),
    long=(1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0),
    factor=32.0,
    original_length=6,
)


@pytest.mark.parametrize("room", [None, 5, 6, 7, 4096])
def test_longrope_turns_by_the_long_factors_where_there_is_room_for_more_than_its_original_length(room: Any) -> None:
    x, positions = normal(0, 1, 4, DIM), np.array([[0, 1, 2, 5]], np.int32)
    y = jax.jit(lambda room: rotate(x, positions, Rope(dim=DIM, theta=THETA, scaling=LONG), room))(room)
    factors = LONG.long if (room or 4) > 6 else LONG.short
    amplitude = math.sqrt(1 + math.log(32) / math.log(6))
    turn = np.exp(1j * positions[0][:, None] * PLAIN / np.array(factors)) * amplitude
    expected = (x[0, :, : DIM // 2] + 1j * x[0, :, DIM // 2 :]) * turn
    close(y[0], np.concatenate([expected.real, expected.imag], axis=-1), LAYER)


def test_a_longrope_of_another_width_or_beside_a_narrow_window_is_refused() -> None:
    rope = Rope(dim=DIM, scaling=LONG)
    assert Attention(heads=1, kv_heads=1, head_dim=DIM, rope=rope, window=7).window == 7
    with pytest.raises(ValueError, match=r"Attention\.window is 6: beside LongRope it must exceed original_length, 6"):
        Attention(heads=1, kv_heads=1, head_dim=DIM, rope=rope, window=6)
    with pytest.raises(ValueError, match=r"LongRope\.short has 8 factors: a rope of 8 takes half that"):
        Rope(dim=8, scaling=LONG)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dim", [8, 16])
def test_rotation_equals_complex_multiplication_and_leaves_the_rest(dim: int, interleaved: bool) -> None:
    rope = Rope(dim=dim, theta=500.0, interleaved=interleaved)
    x, positions = normal(0, 2, 5, 3, 16), np.array([[0, 1, 2, 40, 100], [7, 6, -3, 0, 63]], np.int32)
    y = turned(x, positions, rope)
    close(y, reference.rotate(x.astype(np.float64), positions, rope), 2e-5)  # float32 angles of up to 100 radians
    np.testing.assert_array_equal(y[..., dim:], x[..., dim:])


def test_both_layouts_give_the_same_products_after_permuting() -> None:
    q, k, positions = normal(0, 1, 6, DIM), normal(1, 1, 6, DIM), np.arange(6, dtype=np.int32)[None]
    order = np.arange(DIM).reshape(2, -1).T.reshape(-1)  # 0, 8, 1, 9, ...: the halves, interleaved
    half, pairs = Rope(dim=DIM), Rope(dim=DIM, interleaved=True)
    halves = turned(q, positions, half)[0] @ turned(k, positions, half)[0].T
    interleaved = turned(q[..., order], positions, pairs)[0] @ turned(k[..., order], positions, pairs)[0].T
    close(interleaved, halves, LAYER)


@pytest.mark.parametrize("scaling", [None, Linear(factor=4.0), Llama3(factor=8.0), YARN])
def test_products_depend_on_relative_positions_only(scaling: Any) -> None:
    rope, q, k = Rope(dim=DIM, scaling=scaling), normal(0, 1, 6, DIM), normal(1, 1, 6, DIM)
    near = np.arange(6, dtype=np.int32)[None]

    def products(positions: Any) -> Any:
        return turned(q, positions, rope)[0] @ turned(k, positions, rope)[0].T

    close(products(near + 64), products(near), 2e-5)
    assert np.max(np.abs(products(near * 2) - products(near))) > 0.1


def test_neighbours_beyond_256_differ_in_bfloat16() -> None:
    rope, positions = Rope(dim=DIM), np.array([[256, 257, 4097]], np.int32)
    x = jnp.ones((1, 3, DIM), jnp.bfloat16)
    y = turned(x, positions, rope)
    assert y.dtype == jnp.bfloat16
    expected = reference.rotate(np.ones((1, 3, DIM)), positions, rope)
    close(y, expected, HALF)
    assert np.max(np.abs(expected[0, 0] - expected[0, 1])) > 0.5


def test_rope_turns_pairs_so_its_dim_is_even() -> None:
    with pytest.raises(ValueError, match=r"Rope\.dim is 7: .*even"):
        Rope(dim=7)
    with pytest.raises(ValueError, match=r"Rope\.theta is 0"):
        Rope(dim=8, theta=0)
