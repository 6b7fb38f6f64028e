"""A dense MLP beside experts is the sum of both, each between its norms, with a router of the residual itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archzoo.layers.beside import Beside, NormedRouter
from archzoo.layers.execution import Execution
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.spec import Context

from . import reference
from .conftest import LAYER, close, normal

BATCH, LENGTH, WIDTH = 2, 7, 12
SPEC = Beside(dense=GatedMLP(ffn=9), experts=MoE(experts=5, ffn=6, router=NormedRouter(top_k=2)))
SLOTS = jnp.arange(LENGTH)
ROWS = Context(jnp.broadcast_to(SLOTS, (BATCH, LENGTH)), None, jnp.zeros((BATCH, LENGTH), int), SLOTS, None)


def expected(p: Any, x: Any) -> Any:
    f64, experts, x_TD = reference.f64, p["experts"], x.reshape(-1, WIDTH)
    router = experts["router"]
    read = reference.rms_norm(x_TD, f64(router["scale_D"]), 1e-6) * WIDTH**-0.5
    routed = [reference.route(SPEC.router, logits, None)[:2] for logits in read @ f64(router["w_DX"])]
    chosen, weights = np.array([e for e, _ in routed]), np.array([w for _, w in routed])
    weights = weights * f64(router["gain_X"])[chosen]
    norm = lambda name, x: reference.norm(SPEC.norm, p[name], x)  # noqa: E731
    matrices = (f64(experts[f"w_{n}"]) for n in ("gate_XFD", "up_XFD", "down_XDF"))
    sparse = reference.experts_sum(norm("experts_before", x_TD), chosen, weights, *matrices)
    dense = reference.gated_mlp(p["dense"], norm("dense_before", x_TD))
    return norm("after", norm("dense_after", dense) + norm("experts_after", sparse)).reshape(x.shape)


def test_it_is_the_sum_of_both() -> None:
    shell, x = SPEC.shell(Execution()), normal(0, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, ROWS, None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    params = jax.tree.unflatten(
        tree, [0.5 * normal(i, *leaf.shape) + (leaf.ndim == 1) for i, leaf in enumerate(leaves)]
    )
    y, _, aux = jax.jit(lambda p, x: shell.apply({"params": p}, x, ROWS, None))(params, x)
    close(y, expected(params, x.astype(np.float64)), LAYER)
    assert float(jnp.sum(aux["load_X"])) == BATCH * LENGTH * 2
