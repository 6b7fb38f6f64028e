"""The gated MLP equals its formula, with every activation."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from archzoo.layers.execution import Execution
from archzoo.layers.mlp import ACTIVATIONS, GatedMLP

from . import reference
from .conftest import LAYER, close, normal

GELU = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)
FORMULAS: dict[str, Any] = {
    "silu": reference.silu,
    "gelu": GELU,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", FORMULAS)
def test_the_mlp_equals_its_formula(activation: str, bias: bool) -> None:
    spec, x = GatedMLP(ffn=24, activation=activation, bias=bias), normal(0, 2, 3, 16)
    shell = spec.shell(Execution())
    shapes = jax.eval_shape(lambda key: shell.init(key, x, None, None), jax.random.key(0))["params"]
    p = {name: normal(i, *leaf.shape) for i, (name, leaf) in enumerate(shapes.items())}
    y, entries, aux = jax.jit(lambda p, x: shell.apply({"params": p}, x, None, None))(p, x)
    gate, up, down = (p[f"w_{n}"].astype(np.float64) for n in ("gate_DF", "up_DF", "down_FD"))
    b = [p[f"b_{n}"] if bias else 0 for n in ("gate_F", "up_F", "down_D")]
    close(y, FORMULAS[activation](x @ gate + b[0]) * (x @ up + b[1]) @ down + b[2], LAYER)
    assert entries == aux == {}


def test_every_activation_has_a_formula_here() -> None:
    assert FORMULAS.keys() == ACTIVATIONS.keys()


def test_an_unknown_activation_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"GatedMLP\.activation is 'swish': it takes silu, gelu, gelu_tanh, relu"):
        GatedMLP(ffn=8, activation="swish")
    with pytest.raises(ValueError, match=r"GatedMLP\.ffn is 0"):
        GatedMLP(ffn=0)
