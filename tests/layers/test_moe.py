"""Every dispatch computes the same mixture, capacity drops what overflows and counts it, and padding takes no room."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.execution import Execution
from archzoo.layers.expert import GatedExpert
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.router import Groups, Router
from archzoo.layers.spec import Context
from archzoo.layers.ways import DISPATCH, Tokens, capacity

from . import reference
from .conftest import GRADIENT, LAYER, close, normal

BATCH, LENGTH, WIDTH, EXPERTS, FFN = 2, 9, 8, 6, 5

MIXTURES = {
    "mixtral": MoE(experts=EXPERTS, ffn=FFN, router=Router(top_k=2)),
    "deepseek_v3": MoE(
        experts=EXPERTS,
        ffn=FFN,
        router=Router(top_k=2, score="sigmoid", groups=Groups(count=3, kept=2), bias=True, scale=2.5),
        shared=GatedMLP(ffn=7),
    ),
}


def context(real_BL: Any) -> Context:
    positions = np.where(real_BL, 0, -1).astype(np.int32)
    return Context(jnp.asarray(positions), None, jnp.zeros(real_BL.shape, int), jnp.arange(real_BL.shape[1]), None)


WHOLE = context(np.ones((BATCH, LENGTH), bool))


def layer(spec: MoE, **execution: Any) -> Any:
    """The compiled layer, a function of parameters and tokens: (y, aux)."""
    shell = spec.shell(Execution(**execution))
    return jax.jit(lambda params, x, context=WHOLE: shell.apply({"params": params}, x, context, None)[::2])


def params_of(spec: MoE) -> Any:
    shell, x = spec.shell(Execution(dispatch="dense")), normal(0, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, WHOLE, None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.5 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("dispatch", DISPATCH)
def test_every_dispatch_equals_the_loop(dispatch: str, name: str) -> None:
    spec, x = MIXTURES[name], normal(0, BATCH, LENGTH, WIDTH)
    params = params_of(spec)
    y, aux = layer(spec, dispatch=dispatch, capacity=float(EXPERTS))(params, x)
    close(y, reference.moe(spec, params, x.astype(np.float64)), LAYER)
    assert aux["dropped"] == 0
    assert aux["tokens"] == BATCH * LENGTH
    assert np.sum(aux["load_X"]) == BATCH * LENGTH * spec.router.top_k


def test_every_dispatch_has_the_same_gradients() -> None:
    spec, x, dy = MIXTURES["deepseek_v3"], normal(0, BATCH, LENGTH, WIDTH), normal(9, BATCH, LENGTH, WIDTH)
    params = params_of(spec)

    def gradients(dispatch: str) -> Any:
        run = layer(spec, dispatch=dispatch, capacity=float(EXPERTS))
        return jax.jit(jax.grad(lambda params, x: jnp.sum(run(params, x)[0] * dy), argnums=(0, 1)))(params, x)

    dense = gradients("dense")
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(dense[0]["router"]["w_DX"]))
    np.testing.assert_array_equal(dense[0]["router"]["bias_X"], np.zeros(EXPERTS))
    close(gradients("grouped"), dense, GRADIENT)
    close(gradients("capacity"), dense, GRADIENT)


@pytest.mark.parametrize(("target", "drops"), [("auto", False), ("cpu", False), ("neuron", True)])
def test_only_neuron_dispatches_by_capacity_unasked(target: str, drops: bool) -> None:
    """With room for a twentieth of the choices capacity must drop some, and grouped none."""
    _, aux = layer(MIXTURES["mixtral"], target=target, capacity=0.05)(
        params_of(MIXTURES["mixtral"]), normal(0, BATCH, LENGTH, WIDTH)
    )
    assert (aux["dropped"] > 0) == drops


# --- capacity --------------------------------------------------------------------------------------------------------


def limited(tokens: Tokens, slots: int) -> tuple[Any, int]:
    """The weights after dropping: in each row, token by token, best choice first, while the expert has room."""
    kept, dropped = np.zeros(tokens.weights_BLK.shape), 0
    for b, row in enumerate(tokens.experts_BLK):
        taken = [0] * EXPERTS
        for t in np.flatnonzero(tokens.real_BL[b]):
            for k, expert in enumerate(row[t]):
                if taken[expert] < slots:
                    kept[b, t, k] = tokens.weights_BLK[b, t, k]
                    taken[expert] += 1
                else:
                    dropped += 1
    return kept, dropped


REAL = np.ones((BATCH, LENGTH), bool)
REAL[0, :4] = False


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("real", [np.ones((BATCH, LENGTH), bool), REAL], ids=["whole", "padded"])
def test_capacity_drops_the_later_tokens_and_counts_them(factor: float, real: Any) -> None:
    rng = np.random.default_rng(0)
    skewed = np.array([rng.permutation([0, 1, 2, 0, 1])[:5] for _ in range(BATCH * LENGTH)])
    experts = np.array([list(dict.fromkeys(row))[:2] for row in skewed], np.int32)  # only three of six are used
    weights = np.abs(normal(1, BATCH * LENGTH, 2))
    gate, up, down = normal(2, EXPERTS, FFN, WIDTH), normal(3, EXPERTS, FFN, WIDTH), normal(4, EXPERTS, WIDTH, FFN)
    x = normal(0, BATCH, LENGTH, WIDTH)
    tokens = Tokens(x, real, *(each.reshape(BATCH, LENGTH, 2) for each in (weights, experts)))
    run = jax.jit(partial(capacity, GatedExpert(), execution=Execution(capacity=factor)))
    y, dropped = run((gate, up, down), tokens)

    slots = min(LENGTH, math.ceil(factor * 2 * LENGTH / EXPERTS))
    kept, count = limited(tokens, slots)
    expected = reference.experts_sum(
        x.reshape(-1, WIDTH).astype(np.float64), experts, kept.reshape(-1, 2), gate, up, down
    )
    close(y.reshape(-1, WIDTH), expected, LAYER)
    assert dropped == count
    assert (count > 0) == (factor < 3)


def test_padding_takes_no_slot() -> None:
    """All tokens want one expert with room for three of nine; the padding before them must leave it to them."""
    gate, up, down = normal(0, EXPERTS, FFN, WIDTH), normal(1, EXPERTS, FFN, WIDTH), normal(2, EXPERTS, WIDTH, FFN)
    real = np.arange(LENGTH)[None] >= LENGTH - 3
    one = jnp.ones((1, LENGTH, 1))
    tokens = Tokens(jnp.asarray(normal(9, 1, LENGTH, WIDTH)), jnp.asarray(real), one, jnp.zeros(one.shape, jnp.int32))
    y, dropped = capacity(GatedExpert(), (gate, up, down), tokens, Execution())
    assert dropped == 0
    np.testing.assert_array_equal(np.any(np.asarray(y) != 0, axis=-1), real)


def test_dropping_looks_only_at_earlier_tokens() -> None:
    """So that capacity dispatch stays causal."""
    spec, x = MIXTURES["mixtral"], normal(0, BATCH, LENGTH, WIDTH)
    run, params = layer(spec, dispatch="capacity", capacity=0.5), params_of(spec)
    changed = x.copy()
    changed[:, 5:] = normal(1, BATCH, LENGTH - 5, WIDTH)
    before, after = run(params, x), run(params, changed)
    assert before[1]["dropped"] > 0
    np.testing.assert_array_equal(before[0][:, :5], after[0][:, :5])


def test_padding_is_left_out_of_the_statistics() -> None:
    spec, x = MIXTURES["deepseek_v3"], normal(0, BATCH, LENGTH, WIDTH)
    run, params = layer(spec), params_of(spec)
    other = np.where(REAL[..., None], x, normal(5, *x.shape))
    aux = run(params, x, context(REAL))[1]
    close(run(params, other, context(REAL))[1], aux, LAYER)
    assert aux["tokens"] == REAL.sum()


# --- the spec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": 0}, r"MoE\.experts is 0"),
        ({"ffn": 0}, r"MoE\.ffn is 0"),
        ({"router": Router(top_k=7)}, r"MoE\.router\.top_k is 7: it cannot exceed experts, which is 6"),
        (
            {"router": Router(top_k=2, groups=Groups(count=4, kept=2))},
            r"MoE\.router\.groups\.count is 4: it must divide experts, which is 6",
        ),
        (
            {"router": Router(top_k=5, groups=Groups(count=3, kept=2))},
            r"MoE\.router\.top_k is 5: 2 kept groups hold too few experts",
        ),
    ],
)
def test_an_impossible_mixture_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoE(**{"experts": 6, "ffn": 8, "router": Router(top_k=2), **fields})


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"GatedExpert\.activation is 'tanh': it takes silu"):
        GatedExpert(activation="tanh")
