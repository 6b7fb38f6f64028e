"""Experts without a gate, and in a narrower space than the residual that their router reads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.execution import Execution
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.narrow import NarrowMoE
from archzoo.layers.plain import MLP, PlainExpert
from archzoo.layers.router import Router
from archzoo.layers.spec import Context
from archzoo.layers.ways import DISPATCH

from .conftest import GRADIENT, LAYER, close, normal

BATCH, LENGTH, WIDTH, NARROW, EXPERTS, TOP_K = 2, 9, 8, 5, 6, 2
EXPERT = MoE(experts=EXPERTS, ffn=7, router=Router(top_k=TOP_K, score="sigmoid", scale=2.5), expert=PlainExpert())
SPECS = {
    "as_wide": MoE(experts=EXPERTS, ffn=7, router=EXPERT.router, expert=PlainExpert()),
    "narrow": NarrowMoE(width=NARROW, experts=EXPERT, shared=MLP(ffn=4, activation="relu2", bias=True), bias=True),
}


def layer(spec: Any, **execution: Any) -> Any:
    """The compiled layer, a function of parameters and tokens: (y, aux)."""
    slots = jnp.arange(LENGTH, dtype=jnp.int32)
    context = Context(jnp.zeros((BATCH, LENGTH), jnp.int32), None, jnp.zeros((BATCH, LENGTH), int), slots, None)
    shell = spec.shell(Execution(**execution))
    return jax.jit(lambda params, x: shell.apply({"params": params}, x, context, None)[::2]), shell, context


def params_of(spec: Any) -> Any:
    _, shell, context = layer(spec, dispatch="dense")
    x = normal(0, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, context, None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.5 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def routed(p: Any, read: Any, x: Any) -> Any:
    """float64, one token: its best experts, weighed by their share of the scores."""
    scores = 1 / (1 + np.exp(-read @ p["router"]["w_DX"]))
    best = np.argsort(-scores)[:TOP_K]
    outs = [p["w_down_XDF"][e] @ np.maximum(p["w_up_XFD"][e] @ x, 0) ** 2 for e in best]
    return 2.5 * sum(scores[e] * out for e, out in zip(best, outs, strict=True)) / scores[best].sum()


def by_hand(name: str, params: Any, x_BLD: Any) -> Any:
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    y_TD = []
    for x in x_BLD.reshape(-1, WIDTH).astype(np.float64):
        if name == "as_wide":
            y_TD.append(routed(p, x, x))
            continue
        shared = p["shared"]
        hidden = np.maximum(x @ shared["w_up_DF"] + shared["b_up_F"], 0) ** 2
        narrow = routed(p["experts"], x, x @ p["w_in_DN"] + p["b_in_N"])
        y_TD.append(narrow @ p["w_out_ND"] + p["b_out_D"] + hidden @ shared["w_down_FD"] + shared["b_down_D"])
    return np.stack(y_TD).reshape(x_BLD.shape)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dispatch", DISPATCH)
def test_every_dispatch_equals_the_loop(dispatch: str, name: str) -> None:
    params, x = params_of(SPECS[name]), normal(0, BATCH, LENGTH, WIDTH)
    y, aux = layer(SPECS[name], dispatch=dispatch, capacity=4.0)[0](params, x)
    close(y, by_hand(name, params, x), LAYER)
    aux = aux["experts"] if name == "narrow" else aux
    assert aux["dropped"] == 0
    assert np.sum(aux["load_X"]) == BATCH * LENGTH * TOP_K


def test_every_dispatch_has_the_same_gradients() -> None:
    spec, x, dy = SPECS["narrow"], normal(0, BATCH, LENGTH, WIDTH), normal(9, BATCH, LENGTH, WIDTH)
    params = params_of(spec)

    def gradients(dispatch: str) -> Any:
        run = layer(spec, dispatch=dispatch, capacity=4.0)[0]
        return jax.jit(jax.grad(lambda params, x: jnp.sum(run(params, x)[0] * dy), argnums=(0, 1)))(params, x)

    dense = gradients("dense")
    assert np.any(dense[0]["experts"]["router"]["w_DX"] != 0)
    close(gradients("grouped"), dense, GRADIENT)
    close(gradients("capacity"), dense, GRADIENT)


def test_what_is_shared_stays_at_the_full_width() -> None:
    inside = MoE(experts=2, ffn=4, router=Router(top_k=1), shared=GatedMLP(ffn=4))
    with pytest.raises(ValueError, match=r"NarrowMoE\.experts is .*: what is shared stays outside"):
        NarrowMoE(width=4, experts=inside)
    with pytest.raises(ValueError, match=r"NarrowMoE\.width is 0: it must be positive"):
        NarrowMoE(width=0, experts=EXPERT)
