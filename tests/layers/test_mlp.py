"""The gated MLP equals its formula, with every activation and every gate of two."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from archzoo.layers.bounded import Bounded, Clamped
from archzoo.layers.execution import Execution
from archzoo.layers.mlp import ACTIVATIONS, GatedMLP
from archzoo.layers.spec import from_plain, replace, to_plain

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


def clamped(gate: Any, up: Any) -> Any:
    gate, up = np.minimum(gate, 0.7), np.clip(up, -0.7, 0.7)
    return gate / (1 + np.exp(-1.3 * gate)) * (up + 1)


GATES: dict[Any, Any] = {
    Bounded(limit=0.7): lambda gate, up: reference.silu(np.minimum(gate, 0.7)) * np.clip(up, -0.7, 0.7),
    Clamped(alpha=1.3, limit=0.7): clamped,
}
GATES |= {name: lambda gate, up, f=f: f(gate) * up for name, f in FORMULAS.items()}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", GATES, ids=str)
def test_the_mlp_equals_its_formula(activation: Any, bias: bool) -> None:
    spec, x = GatedMLP(ffn=24, activation=activation, bias=bias), normal(0, 2, 3, 16)
    shell = spec.shell(Execution())
    shapes = jax.eval_shape(lambda key: shell.init(key, x, None, None), jax.random.key(0))["params"]
    p = {name: normal(i, *leaf.shape) for i, (name, leaf) in enumerate(shapes.items())}
    y, entries, aux = jax.jit(lambda p, x: shell.apply({"params": p}, x, None, None))(p, x)
    gate, up, down = (p[f"w_{n}"].astype(np.float64) for n in ("gate_DF", "up_DF", "down_FD"))
    b = [p[f"b_{n}"] if bias else 0 for n in ("gate_F", "up_F", "down_D")]
    close(y, GATES[activation](x @ gate + b[0], x @ up + b[1]) @ down + b[2], LAYER)
    assert entries == aux == {}


def test_every_activation_has_a_formula_here() -> None:
    assert FORMULAS.keys() == ACTIVATIONS.keys()


def test_an_unknown_activation_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"GatedMLP\.activation is 'swish': it takes silu, gelu, gelu_tanh, relu"):
        GatedMLP(ffn=8, activation="swish")
    with pytest.raises(ValueError, match=r"GatedMLP\.activation is 3: .*, or a Gate"):
        GatedMLP(ffn=8, activation=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"GatedMLP\.ffn is 0"):
        GatedMLP(ffn=0)
    with pytest.raises(ValueError, match=r"Bounded\.limit is 0: it must be positive"):
        Bounded(limit=0)


def test_a_gate_survives_json_and_edits_by_path() -> None:
    spec = GatedMLP(ffn=8, activation=Bounded(limit=3.0))
    assert from_plain(to_plain(spec)) == spec
    assert replace(spec, {"activation.limit": 2.0}) == GatedMLP(ffn=8, activation=Bounded(limit=2.0))
