"""A step in parts is the step on the whole; it learns, balances loads by selection biases, and reports what it did."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Decoder, Spec, param_shapes
from archzoo.layers.execution import Execution
from archzoo.layers.moe import MoE
from archzoo.layers.mtp import MTP
from archzoo.layers.norms import RMSNorm
from archzoo.layers.rope import Rope
from archzoo.layers.router import Router
from archzoo.sharding.rules import Rules, make_mesh
from archzoo.train.loss import Losses, default_losses
from archzoo.train.optimizer import Optimizer
from archzoo.train.step import (
    balance_biases,
    make_eval,
    make_gradient,
    make_step,
    start_state,
    state_shapes,
    state_shardings,
)

FAST = {"xla_backend_optimization_level": 0}  # to compile
LOSSES = Losses(z=1e-2, router_z=1e-2, balance=0.1, sequence_balance=0.1)
OPTIMIZER = Optimizer(steps=100, learning_rate=1e-2, warmup=0.02)
ROWS, LENGTH, VOCAB = 4, 8, 24


@pytest.fixture(scope="module")
def spec() -> Spec:
    """Two layers with experts."""
    attention = Attention(heads=2, kv_heads=1, head_dim=8, rope=Rope(dim=8))
    experts = MoE(experts=4, ffn=8, router=Router(top_k=2, score="sigmoid", bias=True))
    return Spec(vocab=VOCAB, width=16, depth=2, attention=attention, mlp=experts, block=pre_norm(RMSNorm()))


@pytest.fixture(scope="module")
def params(spec: Spec) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, jnp.float32), param_shapes(spec))


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Rows with ever more padding, so that a mean of the means of parts is not the mean."""
    rng = np.random.default_rng(1)
    real = np.arange(LENGTH) < LENGTH - 2 * np.arange(ROWS)[:, None]
    tokens, targets = rng.integers(0, VOCAB, (2, ROWS, LENGTH)).astype(np.int32)
    weights = real * rng.uniform(0.5, 1, (ROWS, LENGTH))
    return {"tokens": tokens, "targets": targets, "segment_ids": real.astype(np.int32), "weights": np.float32(weights)}


@pytest.fixture(scope="module")
def whole(spec: Spec, params: Any, batch: dict[str, np.ndarray]) -> Any:
    return jax.jit(make_gradient(spec, Execution(), LOSSES), compiler_options=FAST)(params, batch)


@pytest.fixture(scope="module")
def trained(spec: Spec, params: Any, batch: dict[str, np.ndarray]) -> list[Any]:
    """(state, metrics) before and after each of five steps on one batch."""
    step = jax.jit(make_step(spec, Execution(), OPTIMIZER, LOSSES, bias_rate=0.01), compiler_options=FAST)
    history = [(start_state(spec, OPTIMIZER, params), {})]
    for _ in range(5):
        history.append(step(history[-1][0], batch))
    return history


# --- parts -----------------------------------------------------------------------------------------------------------


def test_parts_give_the_loss_and_gradients_of_the_whole(
    spec: Spec, params: Any, batch: dict[str, np.ndarray], whole: Any
) -> None:
    parts = jax.jit(make_gradient(spec, Execution(), LOSSES, accumulate=2), compiler_options=FAST)(params, batch)
    ((total, (nats, statistics, _)), gradients), ((e_total, (e_nats, e_statistics, _)), e_gradients) = parts, whole
    np.testing.assert_allclose([total, nats], [e_total, e_nats], rtol=1e-6)
    gradients, e_gradients = (jax.tree.map(np.asarray, tree) for tree in (gradients, e_gradients))
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(e_gradients)))
    for g, e in zip(jax.tree.leaves(gradients), jax.tree.leaves(e_gradients), strict=True):
        assert np.abs(g - e).max() < 1e-5 * norm
    for path, held in e_statistics.items():
        np.testing.assert_array_equal(statistics[path]["load_X"], held["load_X"])


def test_a_batch_that_does_not_divide_is_refused(spec: Spec, params: Any, batch: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="a batch of 4 rows does not divide into accumulate=3 equal parts"):
        make_gradient(spec, Execution(), LOSSES, 3)(params, batch)


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_decoders_logits(
    spec: Spec, params: Any, batch: dict[str, np.ndarray], whole: Any
) -> None:
    evaluate = jax.jit(make_eval(spec, Execution()), compiler_options=FAST)
    logits = jax.jit(Decoder(spec).apply, compiler_options=FAST)(
        {"params": params}, batch["tokens"], batch["segment_ids"]
    )
    chosen = np.take_along_axis(np.asarray(logits), batch["targets"][..., None], axis=-1)[..., 0]
    nats = np.log(np.exp(logits).sum(axis=-1)) - chosen
    expected = np.sum(batch["weights"] * nats), np.sum(batch["weights"])
    np.testing.assert_allclose(evaluate(params, batch), expected, rtol=1e-5)
    (_, (reported, *_)), _ = whole
    np.testing.assert_allclose(reported, expected[0], rtol=1e-5)


def test_a_few_steps_reduce_the_loss(trained: list[Any]) -> None:
    losses = [float(metrics["loss"]) for _, metrics in trained[1:]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


def test_metrics_say_what_the_step_did(trained: list[Any], batch: dict[str, np.ndarray], whole: Any) -> None:
    (total, (nats, statistics, _)), _ = whole
    (_, first), (state, _) = trained[1], trained[-1]
    assert all(value.shape == () and value.dtype == jnp.float32 for value in first.values())
    weight, real = batch["weights"].sum(), batch["segment_ids"].sum()
    assert first["loss"] == pytest.approx(float(nats) / weight)
    assert first["total"] == pytest.approx(float(total))
    assert first["tokens"] == pytest.approx(weight)
    assert [float(m["learning_rate"]) for _, m in trained[1:4]] == pytest.approx([0.005, 0.01, 0.01])
    assert first["router_z"] == pytest.approx(np.mean([np.mean(held["z"]) for held in statistics.values()]) / real)
    assert first["dropped"] == 0
    assert 0 < first["load_entropy"] <= 1
    assert 0 <= first["mean_violation"] <= first["max_violation"]
    added = 0.1 * first["balance"] + 0.1 * first["sequence_balance"] + 0.01 * first["router_z"]
    assert first["total"] - first["loss"] > 2 * added  # the two layers', and z
    assert state.step == 5


# --- multi-token prediction ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predicting(spec: Spec) -> tuple[Spec, Any, dict[str, np.ndarray]]:
    """With two modules, and rows of two documents."""
    spec, rng = spec.replace(mtp=MTP(depth=2)), np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, jnp.float32), param_shapes(spec))
    segments = np.array([[1] * 5 + [2] * 3, [1] * 8, [1] * 2 + [2] * 4 + [0] * 2, [1] + [0] * 7], np.int32)
    tokens, targets = rng.integers(0, VOCAB, (2, ROWS, LENGTH)).astype(np.int32)
    weights = np.float32((segments > 0) * rng.uniform(0.5, 1, (ROWS, LENGTH)))
    return spec, params, {"tokens": tokens, "targets": targets, "segment_ids": segments, "weights": weights}


def gradients_of(spec: Spec, params: Any, batch: Any, losses: Losses, accumulate: int = 1) -> Any:
    return jax.jit(make_gradient(spec, Execution(), losses, accumulate), compiler_options=FAST)(params, batch)


def test_the_loss_of_multi_token_prediction_is_over_the_targets_further_on(
    predicting: tuple[Spec, Any, dict[str, np.ndarray]],
) -> None:
    spec, params, batch = predicting
    model, variables = Decoder(spec), {"params": params}
    hidden, _ = model.apply(variables, batch["tokens"], batch["segment_ids"], method="hidden")
    states, _ = model.apply(variables, batch["tokens"], hidden, batch["segment_ids"], method="predict")
    expected, segments = 0.0, batch["segment_ids"]
    for k, state in enumerate(states, start=1):
        logits = np.asarray(state, np.float64) @ np.asarray(params["head_DV"], np.float64)
        for row, place in np.ndindex(ROWS, LENGTH - k):
            if segments[row, place] and segments[row, place + k] == segments[row, place]:
                line, target = logits[row, place], batch["targets"][row, place + k]
                expected += batch["weights"][row, place + k] * (np.log(np.exp(line).sum()) - line[target]) / 2
    (with_it, sums), _ = gradients_of(spec, params, batch, Losses(mtp=0.3))
    (without, _), _ = gradients_of(spec, params, batch, Losses())
    assert sums.mtp == pytest.approx(expected, rel=1e-5)
    assert with_it - without == pytest.approx(0.3 * expected / batch["weights"].sum(), rel=1e-4)


def test_multi_token_prediction_in_parts_is_that_of_the_whole(
    predicting: tuple[Spec, Any, dict[str, np.ndarray]],
) -> None:
    spec, params, batch = predicting
    losses = dataclasses.replace(LOSSES, mtp=0.5)
    (e_total, e_sums), e_gradients = gradients_of(spec, params, batch, losses)
    (total, sums), gradients = gradients_of(spec, params, batch, losses, accumulate=2)
    np.testing.assert_allclose([total, sums.nats, sums.mtp], [e_total, e_sums.nats, e_sums.mtp], rtol=1e-6)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(e_gradients)))
    for g, e in zip(jax.tree.leaves(gradients), jax.tree.leaves(e_gradients), strict=True):
        assert np.abs(g - e).max() < 1e-5 * norm
    for k in range(2):
        load = sums.statistics[f"mtp_{k}/layer/mlp"]["load_X"]
        np.testing.assert_array_equal(load, e_sums.statistics[f"mtp_{k}/layer/mlp"]["load_X"])
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients[f"mtp_{k}"]) if leaf.ndim > 1)


def test_multi_token_prediction_is_trained_with_its_routers_only_where_it_has_a_weight(
    predicting: tuple[Spec, Any, dict[str, np.ndarray]],
) -> None:
    spec, params, batch = predicting
    for weight in (0.3, 0.0):
        step = jax.jit(
            make_step(spec, Execution(), OPTIMIZER, Losses(mtp=weight), bias_rate=0.01), compiler_options=FAST
        )
        state, metrics = step(start_state(spec, OPTIMIZER, params), batch)
        assert ("mtp" in metrics) == (weight > 0)
        if weight:
            assert metrics["total"] == pytest.approx(float(metrics["loss"] + weight * metrics["mtp"]), rel=1e-5)
        assert all(value.shape == () for value in metrics.values())
        for k in range(2):
            after, before = (jax.tree.leaves(tree[f"mtp_{k}"]) for tree in (state.params, params))
            moved = [bool(np.any(a != b)) for a, b in zip(after, before, strict=True)]
            assert all(moved) if weight else not any(moved)
    assert default_losses(spec) == Losses(sequence_balance=1e-4, mtp=0.3)


# --- the selection bias ----------------------------------------------------------------------------------------------


def test_the_selection_bias_goes_up_where_the_load_is_below_the_mean(trained: list[Any], whole: Any) -> None:
    (_, (_, statistics, _)), _ = whole
    (before, _), (after, _) = trained[:2]
    path = "run_0/layer_0/mlp"
    assert set(statistics) == {path}
    load = np.asarray(statistics[path]["load_X"])
    old, new = (np.asarray(s.params["run_0"]["layer_0"]["mlp"]["router"]["bias_X"]) for s in (before, after))
    for layer in range(2):
        assert load[layer].sum() == 2 * (8 + 6 + 4 + 2)
        for expert in range(4):
            mean = load[layer].sum() / 4
            direction = (load[layer, expert] < mean) * 1 - (load[layer, expert] > mean) * 1
            assert new[layer, expert] - old[layer, expert] == pytest.approx(0.01 * direction, abs=1e-6)
    assert np.ptp(load) > 0


def test_routers_without_a_bias_have_none_to_move() -> None:
    params = {"run_0": {"layer_0": {"mlp": {"router": {"w_DX": jnp.ones((1, 4))}, "bias_X": jnp.ones(4)}}}}
    moved = balance_biases(params, {"run_0/layer_0/mlp": jnp.array([[1.0, 0, 0, 0]])}, 0.1)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, moved))


# --- the state -------------------------------------------------------------------------------------------------------


def test_the_state_keeps_its_shapes_and_float32_whatever_the_execution(
    spec: Spec, params: Any, batch: dict[str, np.ndarray]
) -> None:
    for name in ("adamw", "muon"):
        optimizer = Optimizer(steps=10, name=name)
        step = make_step(spec, Execution(dtype="bfloat16"), optimizer, LOSSES, accumulate=2)
        before = jax.eval_shape(lambda p, o=optimizer: start_state(spec, o, p), params)
        after, _ = jax.eval_shape(step, before, batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), before)
        assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}


def test_a_state_copies_the_parameters_it_starts_from(trained: list[Any], params: Any) -> None:
    ours = trained[0][0].params["embed_VD"]
    np.testing.assert_array_equal(ours, params["embed_VD"])
    assert ours.unsafe_buffer_pointer() != params["embed_VD"].unsafe_buffer_pointer()


def test_moments_are_sharded_as_their_parameters(spec: Spec) -> None:
    mesh = make_mesh(jax.devices()[:1], fsdp=1, tensor=1)
    for name, moments in (("adamw", 2), ("muon", 1)):
        optimizer = Optimizer(steps=10, name=name)
        shardings = state_shardings(spec, optimizer, mesh, Rules())
        assert jax.tree.structure(shardings) == jax.tree.structure(state_shapes(spec, optimizer))
        found = [
            leaf.spec
            for path, leaf in jax.tree_util.tree_leaves_with_path(shardings.opt_state)
            if "wq_DKGE" in jax.tree_util.keystr(path)
        ]
        parameter = shardings.params["run_0"]["layer_0"]["attention"]["wq_DKGE"].spec
        assert tuple(parameter) == (None, "fsdp", "tensor", None, None)
        assert found == [parameter] * moments
        assert tuple(shardings.step.spec) == ()


@pytest.mark.parametrize("target", ["cpu", "neuron"])
def test_a_step_has_no_branches(spec: Spec, params: Any, batch: dict[str, np.ndarray], target: str) -> None:
    optimizer = Optimizer(steps=10, name="muon")
    step = make_step(spec, Execution(target=target), optimizer, LOSSES, accumulate=2)
    state = jax.eval_shape(lambda p: start_state(spec, optimizer, p), params)
    text = jax.jit(step).lower(state, batch).as_text()
    assert "stablehlo.dot_general" in text
    assert "stablehlo.case" not in text
    assert "stablehlo.if" not in text
