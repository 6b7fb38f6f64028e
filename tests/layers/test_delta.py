"""The gated delta rule equals its recurrence, in chunks or token by token, whatever is padded, packed or held."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.convolution import convolve
from archzoo.layers.delta import GatedDelta, Tokens, delta_rule, in_chunks, unit_lower_inverse
from archzoo.layers.execution import Execution
from archzoo.layers.norms import RMSNorm
from archzoo.layers.spec import Context

from . import reference
from .conftest import GRADIENT, LAYER, MODEL, close, normal

BATCH, LENGTH, WIDTH = 2, 21, 12


def context(segments: Any = None, pad_B: Any = None, length: int = LENGTH) -> Context:
    slots = np.arange(length, dtype=np.int32)
    positions = slots[None] - (np.zeros((BATCH, 1), np.int32) if pad_B is None else pad_B[:, None])
    segments = None if segments is None else jnp.asarray(segments)
    return Context(jnp.asarray(positions), segments, jnp.zeros((BATCH, length), int), jnp.asarray(slots), pad_B)


def tokens_of(channels: int, strong: float = 1.0) -> Tokens:
    """Random ones; `strong` decays leave nothing of a float32 within a few tokens."""
    k = normal(1, BATCH, LENGTH, 2, 5)
    return Tokens(
        normal(0, BATCH, LENGTH, 2, 5),
        k / np.linalg.norm(k, axis=-1, keepdims=True),
        normal(2, BATCH, LENGTH, 2, 3, 4),
        -strong * np.abs(normal(3, BATCH, LENGTH, 2, 3, channels)),
        2 / (1 + np.exp(-normal(4, BATCH, LENGTH, 2, 3))),
    )


def by_token(tokens: Tokens, memory: Any = None, fresh: Any = ()) -> tuple[Any, Any]:
    """The recurrence in float64, a row and a head at a time; `fresh`: tokens that start from an empty memory."""
    q, k, v, decay, rate = (np.asarray(x, np.float64) for x in tokens)
    out, last = np.zeros_like(v), np.zeros((BATCH, *v.shape[2:4], k.shape[-1], v.shape[-1]))
    for b, h, g in np.ndindex(last.shape[:3]):
        s = last[b, h, g] if memory is None else np.asarray(memory, np.float64)[b, h, g]
        for t in range(v.shape[1]):
            s = np.exp(decay[b, t, h, g])[:, None] * (0 * s if t in fresh else s)
            s = s + rate[b, t, h, g] * np.outer(k[b, t, h], v[b, t, h, g] - k[b, t, h] @ s)
            out[b, t, h, g] = q[b, t, h] @ s
        last[b, h, g] = s
    return out, last


@pytest.mark.parametrize("chunk", [2, 8, 32])
@pytest.mark.parametrize("channels", [1, 5], ids=["per_head", "per_channel"])
@pytest.mark.parametrize("strong", [0.3, 10.0], ids=["mild", "strong"])
def test_chunks_equal_the_recurrence(channels: int, chunk: int, strong: float) -> None:
    tokens, memory = tokens_of(channels, strong), normal(5, BATCH, 2, 3, 5, 4)
    close(in_chunks(tokens, memory, None, chunk), by_token(tokens, memory), MODEL)


@pytest.mark.parametrize("channels", [1, 5], ids=["per_head", "per_channel"])
def test_one_token_at_a_time_equals_chunks_and_padding_changes_nothing(channels: int) -> None:
    tokens, pad = tokens_of(channels), 4
    expected, last = by_token(jax.tree.map(lambda x: x[:, pad:], tokens))
    pad_B, memory = np.full(BATCH, pad, np.int32), None
    out, found = delta_rule(tokens, context(pad_B=pad_B), None)
    close((out[:, pad:], found), (expected, last), MODEL)
    for t in range(LENGTH):
        one = context()._replace(positions_BL=jnp.full((BATCH, 1), t - pad))
        out, memory = delta_rule(jax.tree.map(lambda x, t=t: x[:, t : t + 1], tokens), one, memory)
        assert t < pad or np.allclose(out[:, 0], expected[:, t - pad], atol=1e-5)
    close(memory, last, MODEL)


@pytest.mark.parametrize("channels", [1, 5], ids=["per_head", "per_channel"])
def test_a_document_starts_from_an_empty_memory(channels: int) -> None:
    tokens, starts = tokens_of(channels), (3, 4, 11)
    segments = np.searchsorted(starts, np.arange(LENGTH), side="right") + 1
    segments = np.broadcast_to(segments, (BATCH, LENGTH)).astype(np.int32)
    for chunk in (4, 16):
        close(in_chunks(tokens, jnp.zeros((BATCH, 2, 3, 5, 4)), segments, chunk), by_token(tokens, None, starts), LAYER)


def test_gradients_are_finite_where_nothing_is_left_of_a_token() -> None:
    for channels in (1, 5):
        tokens, memory = tokens_of(channels, 200.0), normal(5, BATCH, 2, 3, 5, 4)
        found = jax.grad(lambda tokens, m=memory: jnp.sum(in_chunks(tokens, m, None)[0] ** 2))(tokens)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_the_inverse_of_identical_keys_is_stable() -> None:
    strict = np.tril(np.ones((64, 64), np.float32), -1)
    close(unit_lower_inverse(jnp.asarray(strict)), np.linalg.inv(np.eye(64) + strict), GRADIENT)


def test_a_convolution_equals_its_sum_and_goes_on_from_what_it_held() -> None:
    x, kernel, segments = normal(0, BATCH, LENGTH, 3), normal(1, 3, 4), np.ones((BATCH, LENGTH), np.int32)
    segments[:, 9:] = 2

    def summed(document: Any) -> Any:
        padded = np.pad(document.astype(np.float64), ((0, 0), (3, 0), (0, 0)))
        return sum(padded[:, j : j + document.shape[1]] * kernel[:, j] for j in range(4))

    close(convolve(x, kernel, context())[0], summed(x), LAYER)
    packed = np.concatenate([summed(x[:, :9]), summed(x[:, 9:])], axis=1)
    close(convolve(x, kernel, context(segments))[0], packed, LAYER)
    first, held = convolve(x[:, :5], kernel, context(length=5))
    rest, held = convolve(x[:, 5:], kernel, context(length=LENGTH - 5), held)
    close(np.concatenate([first, rest], axis=1), summed(x), LAYER)
    close(held, x[:, -3:], LAYER)


def test_the_layer_equals_its_equations() -> None:
    spec = GatedDelta(key_heads=2, value_heads=6, key_dim=5, value_dim=4, taps=3, reach=2.0, norm=RMSNorm(eps=1e-5))
    shell, x = spec.shell(Execution()), normal(0, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, context(), None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    params = jax.tree.unflatten(tree, [0.4 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])
    found, _, _ = jax.jit(lambda params, x: shell.apply({"params": params}, x, context(), None))(params, x)
    p, x = jax.tree.map(np.float64, params), x.astype(np.float64)

    def mixed(w: Any, kernel: Any) -> Any:
        y = np.tensordot(x, w, 1)
        y = np.pad(y, ((0, 0), (2, 0)) + ((0, 0),) * (y.ndim - 2))
        return reference.silu(sum(y[:, j : j + LENGTH] * kernel[..., j] for j in range(3)))

    def unit(y: Any) -> Any:
        return y / np.sqrt(np.sum(y**2, axis=-1, keepdims=True) + 1e-6)

    step = np.log1p(np.exp(np.tensordot(x, p["w_step_DKG"], 1) + p["b_step_KG"]))
    tokens = Tokens(
        unit(mixed(p["w_q_DKE"], p["conv_q_KET"])) / np.sqrt(5),
        unit(mixed(p["w_k_DKE"], p["conv_k_KET"])),
        mixed(p["w_v_DKGU"], p["conv_v_KGUT"]),
        -(np.exp(p["log_forget_KG"]) * step)[..., None],
        2 / (1 + np.exp(-np.tensordot(x, p["w_rate_DKG"], 1))),
    )
    out, _ = by_token(tokens)
    out = reference.rms_norm(out, p["out_norm"]["scale_U"], 1e-5)
    out = out * reference.silu(np.tensordot(x, p["w_gate_DKGU"], 1))
    close(found, np.tensordot(out, p["w_out_KGUD"], 3), MODEL)
