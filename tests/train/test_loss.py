"""Cross entropy in chunks is cross entropy, without an array of all logits; router losses are means over the step."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Spec
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.norms import RMSNorm
from archzoo.layers.router import Router
from archzoo.train import loss
from archzoo.train.loss import Losses, Whole, cross_entropy, default_losses, router_loss, routers

TOKENS, WIDTH, VOCAB = 11, 6, 40
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(TOKENS, WIDTH)).astype(np.float32)
HEAD = RNG.normal(size=(WIDTH, VOCAB)).astype(np.float32)
TARGETS = RNG.integers(0, VOCAB, TOKENS).astype(np.int32)
WEIGHTS = np.where(np.arange(TOKENS) % 4 == 3, 0, RNG.uniform(0.5, 2, TOKENS)).astype(np.float32)


def naive(hidden: Any, head: Any, *, tied: bool, softcap: float | None, z: float, scale: float = 1.0) -> jax.Array:
    logits = jnp.matmul(hidden, head.T if tied else head, precision="highest") * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    nats = normaliser - logits[jnp.arange(TOKENS), TARGETS]
    return jnp.sum(WEIGHTS * (nats + z * normaliser**2))


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize(
    ("tied", "softcap", "z", "scale"),
    [
        (False, None, 0.0, 1.0),
        (True, None, 0.1, 0.25),
        (False, 2.0, 0.1, 3.0),
        (True, 2.0, 0.0, 1.0),
    ],
)
def test_value_and_gradients_are_those_of_full_logits(
    chunk: int, tied: bool, softcap: float | None, z: float, scale: float
) -> None:
    head = HEAD.T if tied else HEAD
    settings = {"tied": tied, "softcap": softcap, "z": z, "scale": scale}
    chunked = jax.jit(
        jax.value_and_grad(
            lambda h, w: 3 * cross_entropy(h, w, TARGETS, WEIGHTS, chunk=chunk, **settings)[0], argnums=(0, 1)
        )
    )
    value, (d_hidden, d_head) = chunked(HIDDEN, head)
    expected, (e_hidden, e_head) = jax.value_and_grad(partial(naive, **settings), argnums=(0, 1))(HIDDEN, head)
    np.testing.assert_allclose(value, 3 * expected, rtol=1e-5)
    np.testing.assert_allclose(d_hidden, 3 * e_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d_head, 3 * e_head, rtol=1e-4, atol=1e-5)


def test_leading_axes_do_not_matter_and_a_loss_alone_is_the_same() -> None:
    flat = cross_entropy(HIDDEN[:10], HEAD, TARGETS[:10], WEIGHTS[:10], tied=False, chunk=4)
    fold = lambda x: x[:10].reshape(2, 5, *x.shape[1:])  # noqa: E731
    folded = cross_entropy(fold(HIDDEN), HEAD, fold(TARGETS), fold(WEIGHTS), tied=False, chunk=4)
    np.testing.assert_allclose(flat, folded, rtol=1e-6)


def test_nats_are_reported_without_z_and_without_a_gradient() -> None:
    total, nats = cross_entropy(HIDDEN, HEAD, TARGETS, WEIGHTS, tied=False, z=0.5)
    np.testing.assert_allclose(nats, naive(HIDDEN, HEAD, tied=False, softcap=None, z=0.0), rtol=1e-5)
    assert total > nats
    d_hidden = jax.grad(lambda h: cross_entropy(h, HEAD, TARGETS, WEIGHTS, tied=False, z=0.5)[1])(HIDDEN)
    assert not d_hidden.any()


def test_tokens_of_weight_zero_change_nothing() -> None:
    loss = jax.value_and_grad(lambda h, w: cross_entropy(h, HEAD, TARGETS, w, tied=False)[0])
    _, d_hidden = loss(HIDDEN, WEIGHTS)
    np.testing.assert_array_equal(np.any(np.asarray(d_hidden) != 0, axis=-1), WEIGHTS > 0)
    value, d_hidden = loss(HIDDEN, np.zeros_like(WEIGHTS))
    assert value == 0
    assert not d_hidden.any()


def test_bfloat16_products_keep_a_float32_gradient_of_the_head() -> None:
    loss = jax.value_and_grad(lambda h, w: cross_entropy(h, w, TARGETS, WEIGHTS, tied=False, chunk=4)[0], (0, 1))
    value, (d_hidden, d_head) = loss(jnp.asarray(HIDDEN, jnp.bfloat16), HEAD)
    expected, (_, e_head) = loss(HIDDEN, HEAD)
    assert (value.dtype, d_hidden.dtype, d_head.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(value, expected, rtol=0.02)
    assert np.linalg.norm(d_head - e_head) < 0.02 * np.linalg.norm(e_head)


# --- cost ------------------------------------------------------------------------------------------------------------


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from equations(value.jaxpr)
            elif hasattr(value, "eqns"):
                yield from equations(value)


def large(tokens: int, width: int, vocab: int, **settings: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    shape = jax.ShapeDtypeStruct
    shapes = shape((tokens, width), jnp.float32), shape((width, vocab), jnp.float32), shape((tokens,), jnp.int32)
    function = lambda h, w, t: cross_entropy(h, w, t, jnp.ones(tokens), tied=False, **settings)[0]  # noqa: E731
    return function, shapes


def test_no_array_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS", 1024 * 4096 // 64)
    function, shapes = large(1024, 8, 4096)
    for traced in (jax.make_jaxpr(function)(*shapes), jax.make_jaxpr(jax.value_and_grad(function, (0, 1)))(*shapes)):
        sizes = [out.aval.size for equation in equations(traced.jaxpr) for out in equation.outvars]
        assert 4096 <= max(sizes) <= 1024 * 4096 // 64  # a head of 8 is 64 times as narrow as 4096 / 8


def test_memory_is_that_of_a_chunk() -> None:
    function, shapes = large(2048, 4, 2048, chunk=32)
    memory = jax.jit(jax.grad(function, (0, 1))).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2048 * 2048 * 4 / 8


def test_a_gradient_costs_three_products_and_a_loss_one() -> None:
    function, shapes = large(64, 8, 128)
    for of, products in ((function, 1), (jax.value_and_grad(function, (0, 1)), 3)):
        names = [equation.primitive.name for equation in equations(jax.make_jaxpr(of)(*shapes).jaxpr)]
        assert names.count("dot_general") == products


# --- routers ---------------------------------------------------------------------------------------------------------


def statistics(repeats: int, experts: int, tokens: int) -> dict[str, Any]:
    """Of routers that are perfectly even."""
    even = jnp.full((repeats, experts), tokens / experts)
    ones = jnp.ones(repeats)
    return {"load_X": 2 * even, "prob_X": even, "tokens": tokens * ones, "z": 4.0 * tokens * ones, "sequence": ones}


def test_router_losses_are_means_over_tokens_and_sums_over_layers() -> None:
    held = {"a": statistics(2, 4, 10), "b": statistics(1, 8, 10)}
    whole = Whole(jnp.float32(7), jnp.float32(10))
    assert router_loss(held, whole, Losses(balance=0.5)) == pytest.approx(0.5 * 3)
    assert router_loss(held, whole, Losses(router_z=0.5)) == pytest.approx(0.5 * 4 * 3)
    assert router_loss(held, whole, Losses(sequence_balance=0.5)) == pytest.approx(0.5 * 3 / 10)
    assert router_loss({}, whole, Losses(balance=0.5)) == 0


def test_the_balance_loss_takes_the_loads_of_the_whole_step() -> None:
    held = {"a": statistics(1, 4, 10)}
    skewed = {"a": jnp.array([[20.0, 0, 0, 0]])}
    uneven = {"a": held["a"] | {"prob_X": jnp.array([[10.0, 0, 0, 0]])}}
    whole = Whole(jnp.float32(1), jnp.float32(10), skewed)
    assert router_loss(uneven, whole, Losses(balance=1.0)) == pytest.approx(4)
    assert router_loss(uneven, whole._replace(loads=None), Losses(balance=1.0)) == pytest.approx(1)


def test_routers_are_found_by_the_path_of_their_layer() -> None:
    aux = {"run_0": {"layer_0": {"attention": {}, "mlp": {}}, "layer_1": {"mlp": {"load_X": 1}}}, "run_1": {}}
    assert routers(aux) == {"run_0/layer_1/mlp": {"load_X": 1}}


def spec_of(mlp: Any) -> Spec:
    attention = Attention(heads=1, kv_heads=1, head_dim=8)
    return Spec(vocab=8, width=8, depth=2, attention=attention, mlp=mlp, block=pre_norm(RMSNorm()))


def test_default_losses_follow_the_routers() -> None:
    dense = GatedMLP(ffn=8)
    biased, plain = (MoE(experts=4, ffn=8, router=Router(top_k=1, bias=bias)) for bias in (True, False))
    assert default_losses(spec_of(dense)) == Losses()
    assert default_losses(spec_of((dense, biased))) == Losses(sequence_balance=1e-4)
    assert default_losses(spec_of((biased, plain))) == Losses(balance=1e-2, router_z=1e-3)


def test_a_negative_coefficient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Losses.balance is -1: it cannot be negative"):
        Losses(balance=-1)
