"""Routing equals DeepSeek's equations token by token; statistics add up; balance is measured from even to collapsed."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.router import Groups, Router, Routing, balance_loss, load_metrics, route, statistics

from . import reference
from .conftest import GRADIENT, LAYER, close, normal

TOKENS, WIDTH, EXPERTS = 24, 8, 12

ROUTERS = {
    "mixtral": Router(top_k=2),
    "top_1": Router(top_k=1, renormalise=False),
    "unnormalised_and_scaled": Router(top_k=3, renormalise=False, scale=2.5),
    "sigmoid": Router(top_k=3, score="sigmoid"),
    "bias": Router(top_k=3, score="sigmoid", bias=True),
    "groups": Router(top_k=3, groups=Groups(count=4, kept=2, best=1), renormalise=False),
    "deepseek_v3": Router(top_k=4, score="sigmoid", groups=Groups(count=4, kept=2), bias=True, scale=2.5),
}

routed = jax.jit(route, static_argnames="spec")


def inputs(spec: Router) -> tuple[Any, Any, Any]:
    """Tokens, the router's weights, and a bias that is large enough to matter."""
    bias = normal(2, EXPERTS) if spec.bias else None
    return normal(0, TOKENS, WIDTH), normal(1, WIDTH, EXPERTS), bias


@pytest.mark.parametrize("name", ROUTERS)
def test_routing_equals_the_equations(name: str) -> None:
    spec = ROUTERS[name]
    x, w, bias = inputs(spec)
    routing = routed(x, w, bias, spec)
    logits = x.astype(np.float64) @ w.astype(np.float64)
    experts, weights, scores = zip(*(reference.route(spec, row, bias) for row in logits), strict=True)
    np.testing.assert_array_equal(routing.experts_TK, np.array(experts))
    close(routing.weights_TK, np.array(weights), LAYER)
    close(routing.scores_TX, np.array(scores), LAYER)
    close(routing.logits_TX, logits, LAYER)


def test_groups_limit_the_choice() -> None:
    spec = ROUTERS["deepseek_v3"]
    groups = np.asarray(routed(*inputs(spec), spec).experts_TK) // (EXPERTS // 4)
    assert max(len(set(row)) for row in groups) == 2


def test_low_scores_in_kept_groups_still_beat_high_ones_elsewhere() -> None:
    """Selection must not mistake a negative biased score for an excluded one."""
    spec = Router(top_k=2, score="sigmoid", groups=Groups(count=2, kept=1), bias=True)
    routing = routed(jnp.ones((1, 1)), jnp.array([[3.0, 3.0, 0.0, 0.1]]), jnp.full(4, -5.0), spec)
    assert set(np.asarray(routing.experts_TK)[0].tolist()) == {0, 1}


def test_the_bias_decides_who_is_chosen_and_not_with_what_weight() -> None:
    spec = Router(top_k=3, score="sigmoid", bias=True, renormalise=False)
    x, w, _ = inputs(spec)
    pushed = np.zeros(EXPERTS, np.float32)
    pushed[5] = 10.0
    routing = routed(x, w, pushed, spec)
    assert np.all(np.asarray(routing.experts_TK)[:, 0] == 5)
    close(routing.weights_TK, np.take_along_axis(np.asarray(routing.scores_TX), np.asarray(routing.experts_TK), 1), 0)
    close(routing.scores_TX, routed(x, w, np.zeros_like(pushed), spec).scores_TX, 0)


def test_the_bias_has_no_gradient_and_the_weights_have() -> None:
    spec = ROUTERS["deepseek_v3"]
    x, w, bias = inputs(spec)
    pull = normal(3, TOKENS, spec.top_k)

    def loss(w: Any, bias: Any) -> Any:
        routing = route(x, w, bias, spec)
        return jnp.sum(routing.weights_TK * pull) + jnp.sum(
            statistics(routing, jnp.ones((2, 12), bool), 4)["prob_X"] ** 2
        )

    dw, dbias = jax.jit(jax.grad(loss, argnums=(0, 1)))(w, bias)
    np.testing.assert_array_equal(dbias, np.zeros(EXPERTS))
    assert np.all(np.any(np.asarray(dw) != 0, axis=0))


def test_bfloat16_tokens_are_routed_in_float32() -> None:
    spec = ROUTERS["sigmoid"]
    x, w, _ = inputs(spec)
    x = jnp.asarray(x, jnp.bfloat16)
    routing = routed(x, w, None, spec)
    assert {a.dtype for a in (routing.weights_TK, routing.scores_TX, routing.logits_TX)} == {jnp.dtype("float32")}
    close(routing.logits_TX, np.asarray(x, np.float64) @ w.astype(np.float64), LAYER)


# --- balance ---------------------------------------------------------------------------------------------------------


def naive_statistics(routing: Routing, real_BL: Any, top_k: int) -> dict[str, Any]:
    """By row and token; the sequence-wise loss is DeepSeek-V3's eqs. 17 to 20 with alpha one."""
    batch, length = real_BL.shape
    scores = np.asarray(routing.scores_TX, np.float64).reshape(batch, length, -1)
    logits = np.asarray(routing.logits_TX, np.float64).reshape(batch, length, -1)
    chosen = np.asarray(routing.experts_TK).reshape(batch, length, -1)
    load, prob, z, tokens, sequence = np.zeros(EXPERTS), np.zeros(EXPERTS), 0.0, 0, 0.0
    for b in range(batch):
        f, p, count = np.zeros(EXPERTS), np.zeros(EXPERTS), int(real_BL[b].sum())
        for t in np.flatnonzero(real_BL[b]):
            for expert in chosen[b, t]:
                f[expert] += 1
            p += scores[b, t] / scores[b, t].sum()
            z += math.log(np.exp(logits[b, t]).sum()) ** 2
        load, prob, tokens = load + f, prob + p, tokens + count
        if count:
            sequence += count * np.sum((EXPERTS / (top_k * count)) * f * (p / count))
    return {"load_X": load, "prob_X": prob, "tokens": tokens, "z": z, "sequence": sequence}


@pytest.fixture(scope="module", params=["mixtral", "deepseek_v3"])
def routing(request: pytest.FixtureRequest) -> tuple[Routing, int]:
    spec = ROUTERS[request.param]
    return routed(*inputs(spec), spec), spec.top_k


counted = jax.jit(statistics, static_argnames="top_k")

REAL = np.ones((4, 6), bool)
REAL[0, :2], REAL[1, 3:], REAL[2] = False, False, False


@pytest.mark.parametrize("real", [np.ones((4, 6), bool), REAL], ids=["whole", "padded"])
def test_statistics_equal_their_definitions(routing: tuple[Routing, int], real: Any) -> None:
    close(counted(routing[0], real, routing[1]), naive_statistics(routing[0], real, routing[1]), LAYER)


def test_statistics_of_parts_add_up_to_the_whole(routing: tuple[Routing, int]) -> None:
    whole = counted(routing[0], REAL, routing[1])
    first, second = (
        counted(jax.tree.map(lambda x: x[part], routing[0]), REAL[rows], routing[1])  # noqa: B023
        for part, rows in ((slice(0, 12), slice(0, 2)), (slice(12, 24), slice(2, 4)))
    )
    close(jax.tree.map(np.add, first, second), whole, LAYER)


def test_padding_does_not_count_whatever_it_holds(routing: tuple[Routing, int]) -> None:
    hidden = ~REAL.reshape(-1, 1)
    other = routing[0]._replace(
        experts_TK=jnp.where(hidden, 0, routing[0].experts_TK),
        scores_TX=jnp.where(hidden, np.float32(0.9), routing[0].scores_TX),
        logits_TX=jnp.where(hidden, np.float32(7), routing[0].logits_TX),
    )
    close(counted(other, REAL, routing[1]), counted(routing[0], REAL, routing[1]), 0)


def test_balance_loss_is_the_dot_of_shares_and_mean_probabilities(routing: tuple[Routing, int]) -> None:
    s = naive_statistics(routing[0], REAL, routing[1])
    share, mean = s["load_X"] / s["load_X"].sum(), s["prob_X"] / s["tokens"]
    loss = balance_loss(*(jnp.asarray(s[name], jnp.float32) for name in ("load_X", "prob_X", "tokens")))
    close(loss, EXPERTS * share @ mean, LAYER)


def test_balance_loss_is_one_when_even_and_the_number_of_experts_when_collapsed() -> None:
    even, one = jnp.full(EXPERTS, 4.0), 48.0 * jax.nn.one_hot(3, EXPERTS)
    loads, probs = jnp.stack([even, one]), jnp.stack([even, one])  # leading axes are layers
    close(balance_loss(loads, probs, jnp.full(2, 48.0)), np.array([1.0, EXPERTS]), LAYER)


def test_balance_loss_pulls_probability_from_loaded_experts_only_through_the_probabilities() -> None:
    load, prob = jnp.arange(1.0, EXPERTS + 1), jnp.full(EXPERTS, 4.0)
    dload, dprob = jax.grad(balance_loss, argnums=(0, 1))(load, prob, jnp.float32(48))
    np.testing.assert_array_equal(dload, np.zeros(EXPERTS))
    close(dprob, EXPERTS * np.asarray(load) / np.asarray(load).sum() / 48, GRADIENT)


@pytest.mark.parametrize("length", [1, 6])
def test_the_sequence_wise_loss_of_even_rows_is_their_tokens(length: int) -> None:
    """Each row's loss is one when its own tokens spread evenly, so the sum weighted by tokens is their number."""
    choices = np.arange(4 * length * EXPERTS).reshape(-1, EXPERTS) % EXPERTS  # every token to all experts
    even = Routing(jnp.ones(choices.shape), jnp.asarray(choices), jnp.ones(choices.shape), jnp.zeros(choices.shape))
    close(counted(even, jnp.ones((4, length), bool), EXPERTS)["sequence"], np.float64(4 * length), LAYER)


@pytest.mark.parametrize(
    ("load", "entropy", "largest", "mean"),
    [
        (np.full(EXPERTS, 7.0), 1.0, 0.0, 0.0),
        (np.eye(EXPERTS)[4] * 30, 0.0, EXPERTS - 1.0, 2 * (EXPERTS - 1) / EXPERTS),
        (np.repeat([2.0, 0.0], EXPERTS // 2), math.log(EXPERTS / 2) / math.log(EXPERTS), 1.0, 1.0),
    ],
    ids=["even", "collapsed", "half"],
)
def test_load_metrics_run_from_even_to_collapsed(load: Any, entropy: float, largest: float, mean: float) -> None:
    expected = {"load_entropy": entropy, "max_violation": largest, "mean_violation": mean}
    metrics = jax.jit(load_metrics)(jnp.asarray(np.stack([load, load]), jnp.float32))
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, abs=1e-6)


# --- the spec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(Router, top_k=0), r"Router\.top_k is 0"),
        (partial(Router, top_k=1, score="tanh"), r"Router\.score is 'tanh': it takes softmax, sigmoid"),
        (partial(Groups, count=0, kept=1), r"Groups\.count is 0"),
        (partial(Groups, count=4, kept=5), r"Groups\.kept is 5: it must be between 1 and count, which is 4"),
        (partial(Groups, count=4, kept=0), r"Groups\.kept is 0"),
        (partial(Groups, count=4, kept=2, best=0), r"Groups\.best is 0"),
    ],
)
def test_an_impossible_router_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
