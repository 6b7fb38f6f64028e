"""The MLP without a gate equals its formula; xIELU is smooth, and learns where it should."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.execution import Execution
from archzoo.layers.plain import MLP, START, Shape, xielu
from archzoo.layers.spec import from_plain, to_plain

from .conftest import LAYER, close, normal


def expected(x: Any, rise: float, fall: float, slope: float) -> Any:
    """In float64, by the formula of the module."""
    a, b = np.log1p(np.exp(rise)), slope + np.log1p(np.exp(fall))
    return np.where(x > 0, a * x**2, b * (np.exp(np.minimum(x, 0)) - 1 - x)) + slope * x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["xielu", "relu"])
def test_the_mlp_equals_its_formula(activation: str, bias: bool) -> None:
    spec, x = MLP(ffn=24, activation=activation, bias=bias), normal(0, 2, 3, 16)
    shell = spec.shell(Execution())
    shapes = jax.eval_shape(lambda key: shell.init(key, x, None, None), jax.random.key(0))["params"]
    p = {name: normal(i, *leaf.shape) for i, (name, leaf) in enumerate(shapes.items())}
    p |= {name: np.float32(value) for name, value in (("slope_", 0.4), ("edge_", -1e-6)) if name in p}
    y, entries, aux = jax.jit(lambda p, x: shell.apply({"params": p}, x, None, None))(p, x)
    p = {name: np.asarray(value, np.float64) for name, value in p.items()}
    up = x @ p["w_up_DF"] + (p["b_up_F"] if bias else 0)
    hidden = expected(up, p["rise_"], p["fall_"], p["slope_"]) if activation == "xielu" else np.maximum(up, 0)
    close(y, hidden @ p["w_down_FD"] + (p["b_down_D"] if bias else 0), LAYER)
    assert entries == aux == {}


def test_xielu_has_one_value_and_one_slope_on_both_sides_of_zero() -> None:
    shape = Shape(*map(jnp.float32, START))
    both = jax.vmap(jax.value_and_grad(lambda x: xielu(x, shape)))(jnp.array([-1e-5, 1e-5]))
    np.testing.assert_allclose(both[0], 0, atol=1e-5)
    np.testing.assert_allclose(both[1], 0.5, atol=1e-4)


def test_only_rise_and_fall_are_trained() -> None:
    shell, x = MLP(ffn=8).shell(Execution()), normal(0, 1, 3, 4)
    p = jax.jit(lambda key: shell.init(key, x, None, None))(jax.random.key(0))["params"]
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(shell.apply({"params": p}, x, None, None)[0]))))(p)
    assert {name for name, grad in grads.items() if np.any(grad)} == {"w_up_DF", "w_down_FD", "rise_", "fall_"}


def test_it_survives_json_and_refuses_what_it_does_not_know() -> None:
    assert from_plain(to_plain(MLP(ffn=8))) == MLP(ffn=8)
    with pytest.raises(ValueError, match=r"MLP\.activation is 'swish': it takes xielu, silu"):
        MLP(ffn=8, activation="swish")
