"""Mamba-2 equals its recurrence, in chunks or token by token, whatever is padded, packed or held."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.execution import Execution
from archzoo.layers.mamba2 import Mamba2, Tokens, in_chunks
from archzoo.layers.spec import Context

from . import reference
from .conftest import MODEL, close, normal

BATCH, LENGTH, WIDTH = 2, 21, 12
SPEC = Mamba2(heads=6, head_dim=4, groups=2, state_dim=5, taps=3, least_step=0.4, bias=True)


def context(first: int, length: int, pad: int = 0) -> Context:
    slots = jnp.arange(first, first + length, dtype=jnp.int32)
    positions = jnp.broadcast_to(slots - pad, (BATCH, length))
    return Context(positions, None, jnp.zeros((BATCH, length), int), slots, jnp.full(BATCH, pad, jnp.int32))


def by_token(q: Any, k: Any, v: Any, decay: Any, memory: Any, fresh: Any = ()) -> tuple[Any, Any]:
    """The recurrence in float64: [B, L, K, G, U]."""
    q, k, v, decay, memory = (np.asarray(x, np.float64) for x in (q, k, v, decay, memory))
    out = np.zeros_like(v)
    for t in range(v.shape[1]):
        memory = np.exp(decay[:, t])[..., None] * (0 * memory if t in fresh else memory)
        memory = memory + k[:, t, :, None, :, None] * v[:, t, :, :, None, :]
        out[:, t] = np.sum(q[:, t, :, None, :, None] * memory, axis=-2)
    return out, memory


@pytest.mark.parametrize("chunk", [4, 32])
@pytest.mark.parametrize("starts", [(), (3, 4, 11)], ids=["one_document", "packed"])
def test_chunks_equal_the_recurrence(chunk: int, starts: Any) -> None:
    tokens = Tokens(
        normal(0, BATCH, LENGTH, 2, 5),
        normal(1, BATCH, LENGTH, 2, 5),
        normal(2, BATCH, LENGTH, 2, 3, 4),
        -np.abs(normal(3, BATCH, LENGTH, 2, 3, 1)),
    )
    memory = normal(4, BATCH, 2, 3, 5, 4)
    segments = np.searchsorted(starts, np.arange(LENGTH), side="right") + 1
    segments = np.broadcast_to(segments, (BATCH, LENGTH)).astype(np.int32) if starts else None
    close(in_chunks(tokens, memory, segments, chunk), by_token(*tokens, memory, starts), MODEL)


def equations(p: Any, x: Any) -> Any:
    """The layer in float64: [B, L, D] -> [B, L, D]."""

    def projected(name: str, axes: str) -> Any:
        return np.tensordot(x, p[f"w_{name}_D{axes}"], 1) + p[f"b_{name}_{axes}"]

    def mixed(name: str, axes: str) -> Any:
        y = projected(name, axes)
        y = np.pad(y, ((0, 0), (2, 0)) + ((0, 0),) * (y.ndim - 2))
        y = sum(y[:, j : j + x.shape[1]] * p[f"conv_{name}_{axes}T"][..., j] for j in range(3))
        return reference.silu(y + p[f"b_conv_{name}_{axes}"])

    step = np.maximum(np.log1p(np.exp(projected("step", "KG") + p["b_time_KG"])), SPEC.least_step)[..., None]
    v, decay = mixed("v", "KGU"), -np.exp(p["log_forget_KG"])[..., None] * step
    out, _ = by_token(mixed("q", "KE"), mixed("k", "KE"), v * step, decay, np.zeros((BATCH, 2, 3, 5, 4)))
    out = (out + p["skip_KG"][..., None] * v) * reference.silu(projected("gate", "KGU"))
    out = reference.rms_norm(out, p["scale_KGU"], SPEC.eps, axes=2)
    return np.tensordot(out, p["w_out_KGUD"], 3) + p["b_out_D"]


def test_the_layer_equals_its_equations_in_one_call_and_in_several_after_padding() -> None:
    shell, x, pad = SPEC.shell(Execution()), normal(0, BATCH, LENGTH, WIDTH), 3
    shapes = jax.eval_shape(lambda key: shell.init(key, x, context(0, LENGTH), None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    params = jax.tree.unflatten(tree, [0.4 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])
    expected = equations(jax.tree.map(np.float64, params), x[:, pad:].astype(np.float64))
    found, _, _ = shell.apply({"params": params}, x, context(0, LENGTH, pad), None)
    close(found[:, pad:], expected, MODEL)
    held = SPEC.cache(BATCH, LENGTH, jnp.float32)
    cache = jax.tree.map(lambda entry: jnp.zeros(entry.shape, entry.dtype), held)
    for first, last in ((0, 8), (8, 9), (9, LENGTH)):
        found, cache, _ = shell.apply({"params": params}, x[:, first:last], context(first, last - first, pad), cache)
        close(found[:, max(pad - first, 0) :], expected[:, max(first - pad, 0) : last - pad], MODEL)
    assert {name: entry.shape for name, entry in cache.items()} == {name: entry.shape for name, entry in held.items()}
