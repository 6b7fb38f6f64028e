"""Experts that compute nothing give a token back, weighed, and cost no slot; with none it is a plain mixture."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.execution import Execution
from archzoo.layers.moe import MoE
from archzoo.layers.router import Groups, Router
from archzoo.layers.spec import Context
from archzoo.layers.ways import DISPATCH

from . import reference
from .conftest import GRADIENT, LAYER, close, normal

BATCH, LENGTH, WIDTH = 2, 9, 8
ROUTER = Router(top_k=3, bias=True, renormalise=False, scale=2.5)
SPEC = MoE(experts=4, identities=3, ffn=5, router=ROUTER)


def context() -> Context:
    positions = jnp.zeros((BATCH, LENGTH), jnp.int32)
    return Context(positions, None, positions, jnp.arange(LENGTH, dtype=jnp.int32), None)


def layer(spec: Any, **execution: Any) -> Any:
    """The compiled layer, a function of parameters and tokens: (y, aux)."""
    shell = spec.shell(Execution(**execution))
    return jax.jit(lambda params, x: shell.apply({"params": params}, x, context(), None)[::2])


def params_of(spec: Any) -> Any:
    shell, x = spec.shell(Execution(dispatch="dense")), normal(0, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, context(), None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.5 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def by_hand(params: Any, x_BLD: Any) -> Any:
    """float64, a token and a choice at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x_TD = x_BLD.reshape(-1, WIDTH).astype(np.float64)
    y_TD = np.zeros_like(x_TD)
    for x, y in zip(x_TD, y_TD, strict=True):
        odds = np.exp(x @ p["router"]["w_DX"])
        scores = odds / odds.sum()
        for e in np.argsort(-(scores + p["router"]["bias_X"]))[: ROUTER.top_k]:
            out = x
            if e < SPEC.experts:
                gate = p["w_gate_XFD"][e] @ x
                out = p["w_down_XDF"][e] @ (gate / (1 + np.exp(-gate)) * (p["w_up_XFD"][e] @ x))
            y += ROUTER.scale * scores[e] * out
    return y_TD.reshape(x_BLD.shape)


@pytest.mark.parametrize("dispatch", DISPATCH)
def test_every_dispatch_equals_the_loop(dispatch: str) -> None:
    params, x = params_of(SPEC), normal(0, BATCH, LENGTH, WIDTH)
    y, aux = layer(SPEC, dispatch=dispatch, capacity=4.0)(params, x)
    close(y, by_hand(params, x), LAYER)
    assert aux["dropped"] == 0
    assert aux["load_X"].shape == (7,)
    assert np.sum(aux["load_X"]) == BATCH * LENGTH * ROUTER.top_k
    assert np.all(aux["load_X"][np.array([0, -1])] > 0)


def test_every_dispatch_has_the_same_gradients() -> None:
    params, x, dy = params_of(SPEC), normal(0, BATCH, LENGTH, WIDTH), normal(9, BATCH, LENGTH, WIDTH)

    def gradients(dispatch: str) -> Any:
        run = layer(SPEC, dispatch=dispatch, capacity=4.0)
        return jax.jit(jax.grad(lambda params, x: jnp.sum(run(params, x)[0] * dy), argnums=(0, 1)))(params, x)

    dense = gradients("dense")
    close(gradients("grouped"), dense, GRADIENT)
    close(gradients("capacity"), dense, GRADIENT)


def test_choices_that_compute_nothing_take_no_slot() -> None:
    params, x = params_of(SPEC), normal(0, BATCH, LENGTH, WIDTH)
    params["router"]["bias_X"] = jnp.asarray([-100.0] * 4 + [100.0] * 3)
    y, aux = layer(SPEC, dispatch="capacity", capacity=1e-6)(params, x)
    close(y, by_hand(params, x), LAYER)
    assert aux["dropped"] == 0


def test_with_none_it_is_a_plain_mixture() -> None:
    plain = MoE(experts=4, ffn=5, router=ROUTER)
    params, x = params_of(plain), normal(0, BATCH, LENGTH, WIDTH)
    y, _ = layer(plain)(params, x)
    close(y, reference.moe(plain, params, x.astype(np.float64)), LAYER)


def test_a_token_is_counted_with_its_share_of_choices_that_compute() -> None:
    assert MoE(experts=512, identities=256, ffn=8, router=Router(top_k=12)).experts_per_token == 8
    assert SPEC.experts_per_token == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": 0}, "experts is 0"),
        ({"identities": -1}, "identities is -1"),
        ({"router": Router(top_k=8)}, "top_k is 8: it cannot exceed experts and identities, which are 7"),
        (
            {"router": Router(top_k=2, groups=Groups(count=2, kept=1))},
            "must divide experts and identities, which are 7",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoE(**{"experts": 4, "identities": 3, "ffn": 5, "router": ROUTER} | fields)
