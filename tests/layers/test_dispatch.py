"""Experts with a function of their own: every dispatch gives the loop's sum, and the gradients are the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.bounded import Clamped
from archzoo.layers.execution import Execution
from archzoo.layers.expert import GatedExpert
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.router import Router
from archzoo.layers.scaled_input import ScaledInputExpert
from archzoo.layers.spec import Context
from archzoo.layers.ways import DISPATCH

from . import reference
from .conftest import GRADIENT, LAYER, close, normal

BATCH, LENGTH, WIDTH, EXPERTS, FFN = 2, 9, 8, 6, 5
SLOTS = jnp.arange(LENGTH)
ROWS = Context(jnp.broadcast_to(SLOTS, (BATCH, LENGTH)), None, jnp.zeros((BATCH, LENGTH), int), SLOTS, None)

CLAMPED = Clamped(alpha=1.3, limit=0.8)
SCALED = MoE(
    experts=EXPERTS,
    ffn=FFN,
    router=Router(top_k=2, score="sigmoid", renormalise=False),
    shared=GatedMLP(ffn=7),
    expert=ScaledInputExpert(),
)
BIASED = Router(top_k=2, logit_bias=True)
SPECS = {
    "clamped": MoE(experts=EXPERTS, ffn=FFN, router=BIASED, expert=GatedExpert(activation=CLAMPED, bias=True)),
    "scaled_input": SCALED,
}


def clamped(p: Any, e: int, x: Any, weight: float) -> Any:
    gate = np.minimum(p["w_gate_XFD"][e] @ x + p["b_gate_XF"][e], CLAMPED.limit)
    up = np.clip(p["w_up_XFD"][e] @ x + p["b_up_XF"][e], -CLAMPED.limit, CLAMPED.limit)
    hidden = gate / (1 + np.exp(-CLAMPED.alpha * gate)) * (up + 1)
    return weight * (p["w_down_XDF"][e] @ hidden + p["b_down_XD"][e])


def scaled(p: Any, e: int, x: Any, weight: float) -> Any:
    x = weight * x
    return p["w_down_XDF"][e] @ (reference.silu(p["w_gate_XFD"][e] @ x) * (p["w_up_XFD"][e] @ x))


def expected(name: str, params: Any, x_BLD: Any) -> Any:
    spec, expert = SPECS[name], {"clamped": clamped, "scaled_input": scaled}[name]
    p, x_TD = jax.tree.map(reference.f64, params), reference.f64(x_BLD).reshape(-1, WIDTH)
    y_TD = reference.gated_mlp(p["shared"], x_TD) if "shared" in p else np.zeros_like(x_TD)
    for y, x in zip(y_TD, x_TD, strict=True):
        logits = x @ p["router"]["w_DX"] + p["router"].get("b_X", 0)
        chosen, weights, _ = reference.route(spec.router, logits, None)
        y += sum(expert(p, e, x, weight) for e, weight in zip(chosen, weights, strict=True))
    return y_TD.reshape(x_BLD.shape)


def layer(name: str, dispatch: str) -> Any:
    shell = SPECS[name].shell(Execution(dispatch=dispatch, capacity=float(EXPERTS)))
    return jax.jit(lambda params, x: shell.apply({"params": params}, x, ROWS, None)[::2])


def params_of(name: str) -> Any:
    shell, x = SPECS[name].shell(Execution()), normal(0, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, ROWS, None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.5 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dispatch", DISPATCH)
def test_every_dispatch_equals_the_loop(dispatch: str, name: str) -> None:
    params, x = params_of(name), normal(0, BATCH, LENGTH, WIDTH)
    y, aux = layer(name, dispatch)(params, x)
    close(y, expected(name, params, x), LAYER)
    assert aux["dropped"] == 0


@pytest.mark.parametrize("name", SPECS)
def test_every_dispatch_has_the_same_gradients(name: str) -> None:
    params, x, weight = params_of(name), normal(0, BATCH, LENGTH, WIDTH), normal(1, BATCH, LENGTH, WIDTH)

    def gradients(dispatch: str) -> Any:
        run = layer(name, dispatch)
        return jax.grad(lambda p, x: jnp.sum(run(p, x)[0] * weight), argnums=(0, 1))(params, x)

    for dispatch in ("grouped", "capacity"):
        close(gradients(dispatch), gradients("dense"), GRADIENT)


def test_a_limit_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Clamped\.limit is 0\.0: it must be positive"):
        Clamped(limit=0.0)
