"""Experts by a table of tokens: each goes to its own, weighed as by any router, and the table is as long as the model's
vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.bounded import Bounded
from archzoo.layers.decoder import Spec, param_shapes
from archzoo.layers.execution import Execution
from archzoo.layers.expert import GatedExpert
from archzoo.layers.hashed import HashRouter, spread
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.norms import RMSNorm
from archzoo.layers.spec import Context, from_plain, to_plain

from . import reference
from .conftest import LAYER, close, normal

BATCH, LENGTH, WIDTH, EXPERTS, FFN, VOCAB, LIMIT = 2, 7, 8, 5, 6, 11, 0.6
SLOTS = jnp.arange(LENGTH)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH))
ROWS = Context(jnp.broadcast_to(SLOTS, (BATCH, LENGTH)), None, jnp.asarray(TOKENS), SLOTS, None)
ROUTERS = {
    "sqrt_softplus": HashRouter(top_k=2, vocab=VOCAB, score="sqrt_softplus", scale=1.5),
    "sigmoid": HashRouter(top_k=3, vocab=VOCAB, score="sigmoid", renormalise=False),
    "softmax": HashRouter(top_k=1, vocab=VOCAB),
}
SCORES = {
    "sqrt_softplus": lambda x: np.sqrt(np.log1p(np.exp(x))),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softmax": reference.softmax,
}


def mixture(router: HashRouter) -> MoE:
    """With DeepSeek-V4's bounded experts, a shared one among them."""
    bounded = Bounded(limit=LIMIT)
    shared = GatedMLP(ffn=4, activation=bounded)
    return MoE(experts=EXPERTS, ffn=FFN, router=router, shared=shared, expert=GatedExpert(activation=bounded))


def params_of(spec: MoE, x: Any) -> Any:
    shell = spec.shell(Execution())
    shapes = jax.eval_shape(lambda key: shell.init(key, x, ROWS, None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    p = jax.tree.unflatten(tree, [normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])
    p["router"]["table_VK"] = np.asarray(spread(jax.random.key(1), (VOCAB, spec.router.top_k), EXPERTS))
    return p


def bounded(x: Any, gate: Any, up: Any, down: Any) -> Any:
    return down @ (reference.silu(np.minimum(gate @ x, LIMIT)) * np.clip(up @ x, -LIMIT, LIMIT))


@pytest.mark.parametrize("name", ROUTERS)
def test_each_token_goes_to_the_experts_of_its_id(name: str) -> None:
    spec, x = mixture(ROUTERS[name]), normal(0, BATCH, LENGTH, WIDTH)
    params = params_of(spec, x)
    y, _, aux = jax.jit(lambda p, x: spec.shell(Execution()).apply({"params": p}, x, ROWS, None))(params, x)
    p, expected, load = jax.tree.map(reference.f64, params), np.zeros((BATCH, LENGTH, WIDTH)), np.zeros(EXPERTS)
    for b, t in np.ndindex(BATCH, LENGTH):
        at, experts = reference.f64(x[b, t]), p["router"]["table_VK"][TOKENS[b, t]].astype(int)
        scores = SCORES[name](at @ p["router"]["w_DX"])[experts]
        weights = (scores / scores.sum() if spec.router.renormalise else scores) * spec.router.scale
        load[experts] += 1
        for e, weight in zip(experts, weights, strict=True):
            expected[b, t] += weight * bounded(at, *(p[f"w_{n}"][e] for n in ("gate_XFD", "up_XFD", "down_XDF")))
        shared = (p["shared"][f"w_{n}"].T for n in ("gate_DF", "up_DF", "down_FD"))
        expected[b, t] += bounded(at, *shared)
    close(y, expected, LAYER)
    np.testing.assert_array_equal(aux["load_X"], load)


def test_the_table_takes_no_gradient_and_its_router_does() -> None:
    spec, x = mixture(ROUTERS["sqrt_softplus"]), normal(0, BATCH, LENGTH, WIDTH)
    loss = lambda p, x: jnp.sum(spec.shell(Execution()).apply({"params": p}, x, ROWS, None)[0] ** 2)  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params_of(spec, x), x)["router"]
    assert np.all(gradient["table_VK"] == 0)
    assert np.all(gradient["w_DX"] != 0)


@pytest.mark.parametrize(("vocab", "top_k", "experts"), [(240, 3, 8), (64, 4, 4), (50, 1, 5)])
def test_a_new_table_gives_a_token_different_experts_and_all_as_many(vocab: int, top_k: int, experts: int) -> None:
    table = np.asarray(spread(jax.random.key(0), (vocab, top_k), experts)).astype(int)
    assert all(len(set(row)) == top_k for row in table)
    first = np.bincount(table[:, 0], minlength=experts)
    np.testing.assert_array_equal(first, vocab // experts)


def test_the_table_is_as_long_as_the_models_vocabulary() -> None:
    attention = Attention(heads=1, kv_heads=1, head_dim=4)
    open_router = HashRouter(top_k=2)
    parts = {"attention": attention, "mlp": mixture(open_router), "block": pre_norm(RMSNorm())}
    spec = Spec(vocab=VOCAB, width=WIDTH, depth=1, **parts)
    for wide in (spec, spec.replace(vocab=17)):
        table = param_shapes(wide)["run_0"]["layer_0"]["mlp"]["router"]["table_VK"]
        assert table.shape == (1, wide.vocab, 2)
    assert from_plain(to_plain(open_router)) == open_router


def test_outside_of_a_model_it_must_be_stated() -> None:
    with pytest.raises(ValueError, match=r"HashRouter\.vocab is None: outside of a model it must be stated"):
        HashRouter(top_k=2).shell(EXPERTS)
    with pytest.raises(ValueError, match=r"HashRouter\.vocab is 0: it must be positive"):
        HashRouter(top_k=2, vocab=0)
