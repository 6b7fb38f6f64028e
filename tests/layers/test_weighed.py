"""A weighed MLP is the gated MLP times the sigmoid of a product with the token."""

import jax
import numpy as np

from archzoo.layers.execution import Execution
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.spec import from_plain, to_plain
from archzoo.layers.weighed import WeighedMLP

from . import reference
from .conftest import LAYER, close, normal


def test_it_equals_its_formula() -> None:
    spec, x = WeighedMLP(ffn=24), normal(0, 2, 3, 16)
    shell = spec.shell(Execution())
    shapes = jax.eval_shape(lambda key: shell.init(key, x, None, None), jax.random.key(0))["params"]
    p = {name: normal(i, *leaf.shape) for i, (name, leaf) in enumerate(shapes.items())}
    y, entries, aux = jax.jit(lambda p, x: shell.apply({"params": p}, x, None, None))(p, x)
    p64, x64 = {name: value.astype(np.float64) for name, value in p.items()}, x.astype(np.float64)
    mlp = (reference.silu(x64 @ p64["w_gate_DF"]) * (x64 @ p64["w_up_DF"])) @ p64["w_down_FD"]
    close(y, mlp / (1 + np.exp(-x64 @ p64["weigh_D"]))[..., None], LAYER)
    assert entries == aux == {}


def test_it_survives_json_as_itself() -> None:
    spec = WeighedMLP(ffn=8)
    assert from_plain(to_plain(spec)) == spec != GatedMLP(ffn=8)
