"""Streams mix as the equation says, never grow, and a model of them decodes as it reads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.accounting import leaves
from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Decoder, Spec, init_cache
from archzoo.layers.execution import Execution
from archzoo.layers.hyper import HyperConnections, doubly_stochastic
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.norms import RMSNorm
from archzoo.layers.rope import Rope
from archzoo.layers.spec import Context
from archzoo.sharding.rules import Rules

from . import reference
from .conftest import LAYER, MODEL, close, normal

BATCH, LENGTH, WIDTH, STREAMS = 2, 7, 12, 3
BLOCK = HyperConnections(streams=STREAMS, steps=6)
ATTENTION = Attention(heads=2, kv_heads=1, head_dim=6, rope=Rope(dim=6))
MLP = GatedMLP(ffn=10)
SPEC = Spec(vocab=20, width=WIDTH, depth=3, attention=ATTENTION, mlp=MLP, block=BLOCK)
SLOTS = jnp.arange(LENGTH)
ROWS = Context(jnp.broadcast_to(SLOTS, (BATCH, LENGTH)), None, jnp.zeros((BATCH, LENGTH), int), SLOTS, None)


def random_like(shapes: Any) -> Any:
    paths, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.4 * normal(i, *leaf.shape) for i, leaf in enumerate(paths)])


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def step(p: Any, x: Any, f: Any) -> Any:
    """One application of the equation, token by token."""
    w, bias, gain = (reference.f64(p[name]) for name in ("w_NDX", "bias_X", "gain_G"))
    y, eps, n = np.zeros_like(x), BLOCK.eps, STREAMS
    mixes, posts, inputs = [], [], np.zeros((BATCH, LENGTH, WIDTH))
    for b, t in np.ndindex(BATCH, LENGTH):
        flat = reference.rms_norm(x[b, t].ravel(), 1.0, BLOCK.norm_eps)
        read = flat @ w.reshape(n * WIDTH, -1)
        inputs[b, t] = (sigmoid(read[:n] * gain[0] + bias[:n]) + eps) @ x[b, t]
        posts.append(2 * sigmoid(read[n : 2 * n] * gain[1] + bias[n : 2 * n]))
        mix = reference.softmax((read[2 * n :] * gain[2] + bias[2 * n :]).reshape(n, n)) + eps
        mix = mix / (mix.sum(axis=0) + eps)
        for _ in range(BLOCK.steps - 1):
            mix = mix / (mix.sum(axis=1, keepdims=True) + eps)
            mix = mix / (mix.sum(axis=0) + eps)
        mixes.append(mix)
    out = f(inputs)
    for i, (b, t) in enumerate(np.ndindex(BATCH, LENGTH)):
        y[b, t] = mixes[i].T @ x[b, t] + np.outer(posts[i], out[b, t])
    return y


def test_a_block_is_the_equation() -> None:
    shell, x = BLOCK.shell(Execution(), ATTENTION, MLP), normal(0, BATCH, LENGTH, STREAMS, WIDTH)
    p = random_like(jax.eval_shape(lambda key: shell.init(key, x, ROWS, None), jax.random.key(0))["params"])
    y, _, _ = jax.jit(lambda p, x: shell.apply({"params": p}, x, ROWS, None))(p, x)
    positions = np.asarray(ROWS.positions_BL)
    attended = step(
        p["attention_streams"],
        x.astype(np.float64),
        lambda x: reference.attention(
            ATTENTION, p["attention"], reference.norm(BLOCK.norm, p["attention_before"], x), positions
        ),
    )
    mlp = lambda x: reference.gated_mlp(p["mlp"], reference.norm(BLOCK.norm, p["mlp_before"], x))  # noqa: E731
    close(y, step(p["mlp_streams"], attended, mlp), 2 * LAYER)


def test_the_last_norm_reads_a_weighed_sum_of_the_streams() -> None:
    shell, x = BLOCK.close(), normal(0, BATCH, LENGTH, STREAMS, WIDTH)
    p = random_like(jax.eval_shape(lambda key: shell.init(key, x), jax.random.key(0))["params"])
    y = jax.jit(lambda p, x: shell.apply({"params": p}, x))(p, x)
    w, bias, gain = (reference.f64(p["read"][name]) for name in ("w_NDX", "bias_X", "gain_G"))
    expected = np.zeros((BATCH, LENGTH, WIDTH))
    for b, t in np.ndindex(BATCH, LENGTH):
        flat = reference.rms_norm(reference.f64(x[b, t]).ravel(), 1.0, BLOCK.norm_eps)
        expected[b, t] = (sigmoid(flat @ w.reshape(-1, STREAMS) * gain + bias) + BLOCK.eps) @ x[b, t]
    close(y, expected, LAYER)


def test_rows_and_columns_sum_to_one() -> None:
    mix = doubly_stochastic(2 * normal(0, 2, 3, 4, 4), 20, 1e-6)
    for axis in (-1, -2):
        np.testing.assert_allclose(np.sum(mix, axis=axis), 1, atol=1e-3)


def test_decoding_equals_prefill_with_streams() -> None:
    params, tokens = random_like(SPEC.shapes), np.arange(2 * LENGTH).reshape(2, LENGTH) % 20
    whole = jax.jit(lambda p, t: Decoder(SPEC).apply({"params": p}, t))(params, tokens)
    extend = jax.jit(lambda p, t, c: Decoder(SPEC).apply({"params": p}, t, c, method="extend"))
    logits, cache = extend(params, tokens[:, :4], init_cache(SPEC, 2, LENGTH, "float32"))
    close(logits, whole[:, :4], MODEL)
    for t in range(4, LENGTH):
        logits, cache = extend(params, tokens[:, t : t + 1], cache)
        close(logits[:, 0], whole[:, t], MODEL)


def test_every_parameter_but_the_gains_has_axes_with_rules() -> None:
    named = {axis for leaf in leaves(SPEC) if leaf.path[-1] != "gain_G" for axis in leaf.axes}
    assert None not in named
    assert {axis for axis in named if axis} <= set(Rules.__dataclass_fields__)


@pytest.mark.parametrize("field", ["streams", "steps"])
def test_what_cannot_be_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"HyperConnections.{field} is 0"):
        HyperConnections(**{field: 0})


def test_streams_beside_a_single_residual_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Spec.block .* as many streams run through all layers"):
        SPEC.replace(block=(BLOCK, pre_norm(RMSNorm())))
