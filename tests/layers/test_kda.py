"""Kimi Delta Attention equals its equations, and goes on from what it held."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archzoo.layers.execution import Execution
from archzoo.layers.kda import KimiDelta
from archzoo.layers.norms import RMSNorm
from archzoo.layers.spec import Context

from . import reference
from .conftest import MODEL, close, normal

BATCH, LENGTH, WIDTH = 2, 19, 12
SPEC = KimiDelta(heads=3, head_dim=5, rank=4, taps=3, norm=RMSNorm(eps=1e-5))


def context(first: int, length: int) -> Context:
    slots = jnp.arange(first, first + length, dtype=jnp.int32)
    positions = jnp.broadcast_to(slots, (BATCH, length))
    return Context(positions, None, jnp.zeros((BATCH, length), int), slots, jnp.zeros(BATCH, jnp.int32))


def equations(p: Any, x: Any) -> Any:
    """The layer in float64: [L, D] -> [L, D], one token at a time."""

    def mixed(name: str) -> Any:
        y = np.pad(np.tensordot(x, p[f"w{name}_DHE"], 1), ((2, 0), (0, 0), (0, 0)))
        return reference.silu(sum(y[j : j + LENGTH] * p[f"conv_{name}_HET"][..., j] for j in range(3)))

    def narrow(name: str) -> Any:
        return np.tensordot(x @ p[f"w_{name}_down_DR"], p[f"w_{name}_up_RHE"], 1)

    q, k, v = map(mixed, "qkv")
    q, k = (y / np.sqrt(np.sum(y**2, axis=-1, keepdims=True) + 1e-6) for y in (q, k))
    kept = np.exp(-np.exp(p["log_forget_H"])[:, None] * np.log1p(np.exp(narrow("step") + p["b_step_HE"])))
    rate, out = 1 / (1 + np.exp(-x @ p["w_rate_DH"])), np.zeros_like(v)
    for h in range(SPEC.heads):
        memory = np.zeros((SPEC.head_dim, SPEC.head_dim))
        for t in range(LENGTH):
            memory = kept[t, h][:, None] * memory
            memory = memory + rate[t, h] * np.outer(k[t, h], v[t, h] - k[t, h] @ memory)
            out[t, h] = q[t, h] @ memory / np.sqrt(SPEC.head_dim)
    out = reference.rms_norm(out, p["out_norm"]["scale_E"], 1e-5) / (1 + np.exp(-narrow("gate")))
    return np.tensordot(out, p["wo_HED"], 2)


def test_the_layer_equals_its_equations_in_one_call_and_in_several() -> None:
    shell, x = SPEC.shell(Execution()), normal(0, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, context(0, LENGTH), None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    params = jax.tree.unflatten(tree, [0.4 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])
    expected = np.stack([equations(jax.tree.map(np.float64, params), row.astype(np.float64)) for row in x])
    found, entries, _ = shell.apply({"params": params}, x, context(0, LENGTH), None)
    close(found, expected, MODEL)
    held = SPEC.cache(BATCH, LENGTH, jnp.float32)
    assert {name: (entry.shape, entry.dtype) for name, entry in entries.items()} == {
        name: (entry.shape, entry.dtype) for name, entry in held.items()
    }
    cache = jax.tree.map(lambda entry: jnp.zeros(entry.shape, entry.dtype), held)
    for first, last in ((0, 8), (8, 9), (9, LENGTH)):
        found, cache, _ = shell.apply({"params": params}, x[:, first:last], context(first, last - first), cache)
        close(found, expected[:, first:last], MODEL)
