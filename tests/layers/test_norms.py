"""Norms equal the papers' formulas, in float32 whatever comes in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.execution import Execution
from archzoo.layers.norms import L2Norm, LayerNorm, QKNorm, RMSNorm, layer_norm, rms_norm

from . import reference
from .conftest import GRADIENT, HALF, LAYER, close, normal

NORMS: dict[str, Any] = {
    "rms": RMSNorm(eps=1e-3),
    "zero_centred": RMSNorm(zero_centred=True),
    "layer": LayerNorm(),
    "layer_no_bias": LayerNorm(bias=False),
    "l2": L2Norm(),
}


def shell_and_params(spec: Any, axes: str, x: Any) -> tuple[Any, dict[str, Any]]:
    """The norm's module and random parameters of the shapes it asks for."""
    shell = spec.shell(Execution(), axes)
    shapes = jax.eval_shape(shell.init, jax.random.key(0), x).get("params", {})
    return shell, {name: normal(1, *shape.shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("axes", ["D", "KGE"])
@pytest.mark.parametrize("name", [name for name in NORMS if name != "l2"])
def test_a_norm_equals_its_formula(name: str, axes: str) -> None:
    x = 2 + normal(0, 2, 5, 3, 2, 4)
    shell, params = shell_and_params(NORMS[name], axes, x)
    assert {p.rpartition("_")[2] for p in params} == {axes}
    y = jax.jit(shell.apply)({"params": params}, x)
    close(y, reference.norm(NORMS[name], params, x.astype(np.float64)), LAYER)


@pytest.mark.parametrize("axes", ["E", "KGE"])
def test_the_l2_norm_leaves_a_mean_square_of_one_and_has_no_parameter(axes: str) -> None:
    x = 5 * normal(0, 2, 5, 3, 2, 4)
    shell, params = shell_and_params(L2Norm(), axes, x)
    y = np.asarray(jax.jit(shell.apply)({"params": params}, x), np.float64)
    assert params == {}
    over = tuple(range(-len(axes), 0))
    close(np.mean(y**2, axis=over), np.ones(x.shape[: -len(axes)]), LAYER)
    close(y, x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=over, keepdims=True)), LAYER)


@pytest.mark.parametrize(("over", "scale"), [("head", (4,)), ("width", (3, 2, 4))])
def test_qk_norm_scales_one_head_or_the_width_of_all(over: str, scale: tuple[int, ...]) -> None:
    x = normal(0, 2, 5, 3, 2, 4)
    shell, params = shell_and_params(QKNorm(over=over), "KGE", x)
    assert [p.shape for p in params.values()] == [scale]
    expected = reference.rms_norm(x.astype(np.float64), next(iter(params.values())), 1e-6, len(scale))
    close(jax.jit(shell.apply)({"params": params}, x), expected, LAYER)


@pytest.mark.parametrize("name", ["rms", "layer"])
def test_bfloat16_is_normed_in_float32_and_rounded_once(name: str) -> None:
    x = jnp.asarray(100 + normal(0, 4, 512), jnp.bfloat16)  # a mean, or a root, in bfloat16 would be off by half
    scale = jnp.asarray(1 + normal(1, 512), jnp.float32)
    one, exact = np.asarray(x, np.float64), np.asarray(scale, np.float64)
    if name == "rms":
        y, expected = rms_norm(x, scale, 1e-6), reference.rms_norm(one, exact, 1e-6)
    else:
        y, expected = layer_norm(x, scale, None, 1e-6), reference.layer_norm(one, exact, 0.0, 1e-6)
    assert y.dtype == jnp.bfloat16
    error = np.abs(np.asarray(y, np.float64) - expected) / np.abs(expected)
    assert np.max(error) <= HALF * 1.02


@pytest.mark.parametrize("axes", ["D", "GE"])
@pytest.mark.parametrize("name", ["rms", "zero_centred", "layer"])
def test_gradients_equal_finite_differences(name: str, axes: str) -> None:
    x, dy = normal(0, 3, 2, 4), normal(2, 3, 2, 4).astype(np.float64)
    shell, params = shell_and_params(NORMS[name], axes, x)
    at = {"x": x, **params}

    def loss(at: dict[str, Any]) -> Any:
        return jnp.sum(shell.apply({"params": {k: v for k, v in at.items() if k != "x"}}, at["x"]) * dy)

    def slope(name_: str, index: tuple[int, ...], step: float = 1e-5) -> float:
        values = []
        for sign in (1, -1):
            moved = {k: np.asarray(v, np.float64).copy() for k, v in at.items()}
            moved[name_][index] += sign * step
            values.append(
                np.sum(reference.norm(NORMS[name], {k: v for k, v in moved.items() if k != "x"}, moved["x"]) * dy)
            )
        return float(values[0] - values[1]) / (2 * step)

    for leaf, gradient in jax.jit(jax.grad(loss))(at).items():
        expected = np.array([slope(leaf, index) for index in np.ndindex(gradient.shape)]).reshape(gradient.shape)
        close(gradient, expected, GRADIENT)


@pytest.mark.parametrize("spec", [RMSNorm, LayerNorm, L2Norm])
def test_a_norm_needs_a_positive_eps(spec: Any) -> None:
    with pytest.raises(ValueError, match=rf"{spec.__name__}\.eps is 0"):
        spec(eps=0)


def test_qk_norm_knows_heads_and_width() -> None:
    with pytest.raises(ValueError, match=r"QKNorm\.over is 'heads': it takes head or width"):
        QKNorm(over="heads")
