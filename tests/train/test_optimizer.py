"""What each parameter's optimizer does to it follows from its axes; the learning rate follows its schedule."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.accounting import leaves
from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Spec, param_shapes
from archzoo.layers.latent import LatentAttention
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.norms import QKNorm, RMSNorm
from archzoo.layers.rope import Rope
from archzoo.layers.router import Router
from archzoo.train.optimizer import Optimizer, decays, is_selection_bias, learning_rate, make_optimizer, muon_axes

MATRICES = {
    # name: (rows, columns), the first axis being that of stacked layers
    "wq_DKGE": ((1,), (2, 3, 4)),
    "wk_DKE": ((1,), (2, 3)),
    "wv_DKE": ((1,), (2, 3)),
    "wo_KGED": ((1, 2, 3), (4,)),
    "wq_down_DQ": ((1,), (2,)),
    "wq_up_QHP": ((1,), (2, 3)),
    "wkv_down_DT": ((1,), (2,)),
    "wk_CHN": ((1,), (2, 3)),
    "wv_CHV": ((1,), (2, 3)),
    "wo_HVD": ((1, 2), (3,)),
    "w_gate_DF": ((1,), (2,)),
    "w_up_DF": ((1,), (2,)),
    "w_down_FD": ((1,), (2,)),
    "w_gate_XFD": ((3,), (2,)),
    "w_up_XFD": ((3,), (2,)),
    "w_down_XDF": ((3,), (2,)),
}


@pytest.fixture(scope="module")
def spec() -> Spec:
    """Every kind of parameter there is."""
    grouped = Attention(heads=4, kv_heads=2, head_dim=4, bias="qkvo", qk_norm=QKNorm(over="width"))
    latent = LatentAttention(heads=2, nope_dim=4, value_dim=4, kv_rank=8, q_rank=8, rope=Rope(dim=4))
    experts = MoE(experts=4, ffn=8, router=Router(top_k=2, bias=True), shared=GatedMLP(ffn=8))
    mlp = (GatedMLP(ffn=12, bias=True), experts)
    return Spec(vocab=32, width=16, depth=4, attention=(grouped, latent), mlp=mlp, block=pre_norm(RMSNorm()))


def normal(spec: Spec, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), param_shapes(spec))


def named(tree: Any) -> Iterator[tuple[str, jax.Array]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield path[-1].key, leaf


def updated(config: Optimizer, spec: Spec, gradients: Any, params: Any) -> tuple[Any, Any]:
    """(updates, state) of one step."""
    transform = make_optimizer(config, spec)
    step = lambda g, p: transform.update(g, transform.init(p), p)  # noqa: E731
    fast = {"xla_backend_optimization_level": 0}  # to compile
    updates, state = jax.jit(step, compiler_options=fast)(gradients, params)
    return jax.tree.map(np.asarray, (updates, state))


# --- which parameter gets what ---------------------------------------------------------------------------------------


def test_muon_gets_these_matrices_and_no_others(spec: Spec) -> None:
    found = {leaf.path[-1]: muon_axes(leaf) for leaf in leaves(spec)}
    assert {name: axes for name, axes in found.items() if axes is not None} == MATRICES


def test_weights_of_matrices_decay_but_the_embedding(spec: Spec) -> None:
    assert {leaf.path[-1] for leaf in leaves(spec) if decays(leaf)} == {*MATRICES, "head_DV", "w_DX"}


def test_a_tied_embedding_does_not_decay(spec: Spec) -> None:
    assert not any(decays(leaf) for leaf in leaves(spec.replace(tied=True)) if "vocab" in leaf.axes)


def test_only_the_routers_have_selection_biases(spec: Spec) -> None:
    assert [leaf.path[-3:] for leaf in leaves(spec) if is_selection_bias(leaf)] == [("mlp", "router", "bias_X")]


@pytest.fixture(scope="module")
def adamw(spec: Spec) -> tuple[Any, Any, Any, Any]:
    """(params, gradients, updates, state) of one step at a learning rate of 1."""
    config = Optimizer(steps=10, learning_rate=1.0, warmup=0, decay=0, weight_decay=0.5, clip=2.0)
    params = normal(spec, 0)
    gradients = jax.tree.map(lambda leaf: leaf + np.sign(leaf), normal(spec, 1))
    return params, gradients, *updated(config, spec, gradients, params)


def test_adamw_moves_by_the_sign_and_decays_what_it_should(spec: Spec, adamw: tuple[Any, ...]) -> None:
    params, gradients, updates, _ = adamw
    for leaf, p, g, u in zip(leaves(spec), *map(jax.tree.leaves, (params, gradients, updates)), strict=True):
        moved = 0 if is_selection_bias(leaf) else -np.sign(g) - 0.5 * p * decays(leaf)
        # A first step of Adam is g / (|g| + eps).
        np.testing.assert_allclose(u, moved + np.zeros_like(p), atol=1e-3, err_msg=str(leaf.path))


def test_the_selection_bias_is_not_touched_and_has_no_moments(spec: Spec, adamw: tuple[Any, ...]) -> None:
    *_, updates, state = adamw
    assert not any(leaf.any() for name, leaf in named(updates) if name == "bias_X")
    moments = [name for path, _ in jax.tree_util.tree_leaves_with_path(state) for name in map(str, path)]
    assert "['embed_VD']" in moments
    assert "['bias_X']" not in moments


def test_gradients_are_clipped_by_their_global_norm(adamw: tuple[Any, ...]) -> None:
    *_, state = adamw
    first = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if ".mu" in jax.tree_util.keystr(path)]
    # The first moment after one step is 1 - b1 of the gradient; that of the selection biases is missing.
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in map(np.asarray, first)))
    assert norm == pytest.approx((1 - 0.9) * 2.0, rel=0.01)


def test_muon_orthogonalises_each_layer_and_expert_by_itself(spec: Spec) -> None:
    config = Optimizer(steps=10, name="muon", learning_rate=1.0, warmup=0, decay=0, weight_decay=0, clip=None)
    updates, _ = updated(config, spec, normal(spec, 1), normal(spec, 0))
    seen = set()
    for name, update in named(updates):
        if name not in MATRICES:
            assert np.abs(update).max() <= 1.001  # Adam's
            continue
        rows, columns = MATRICES[name]
        batch = [axis for axis in range(update.ndim) if axis not in (*rows, *columns)]
        shape = (-1, *(int(np.prod([update.shape[axis] for axis in axes])) for axes in (rows, columns)))
        matrices = np.transpose(update, (*batch, *rows, *columns)).reshape(shape)
        singular = np.linalg.svd(matrices, compute_uv=False) / (0.2 * max(matrices.shape[1:]) ** 0.5)
        # Five iterations bring all but the smallest to between 0.7 and 1.2.
        assert np.quantile(singular, 0.2) > 0.65, name
        assert singular.max() < 1.25, name
        seen.add(name)
    assert seen == set(MATRICES)


# --- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "wsd"}, {0: 0.1, 9: 1, 10: 1, 79: 1, 80: 1, 90: 0.55, 99: 0.145, 100: 0.1, 200: 0.1}),
        ({"schedule": "cosine"}, {0: 0.1, 9: 1, 10: 1, 55: 0.55, 100: 0.1, 200: 0.1}),
        ({"schedule": "wsd", "warmup": 0.0, "decay": 0.0}, {0: 1, 50: 1, 99: 1}),
        ({"schedule": "cosine", "warmup": 1.0}, {0: 0.01, 49: 0.5, 99: 1}),
    ],
)
def test_the_learning_rate_at_a_step(settings: dict[str, Any], expected: dict[int, float]) -> None:
    config = Optimizer(**{"steps": 100, "learning_rate": 2.0, "warmup": 0.1, "decay": 0.2, "final": 0.1, **settings})
    rates = {step: float(learning_rate(config, step)) / 2 for step in expected}
    assert rates == pytest.approx(expected, rel=1e-5)


def test_a_run_of_one_step_has_a_learning_rate() -> None:
    for schedule in ("wsd", "cosine"):
        assert learning_rate(Optimizer(steps=1, schedule=schedule), jnp.int32(0)) == pytest.approx(1e-3, rel=0.1)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "Optimizer.steps is 0: it must be positive"),
        ({"name": "sgd"}, "Optimizer.name is 'sgd': it takes adamw, muon"),
        ({"schedule": "linear"}, "Optimizer.schedule is 'linear': it takes wsd, cosine"),
        ({"learning_rate": 0.0}, "Optimizer.learning_rate is 0.0: it must be positive"),
        ({"learning_rate": float("nan")}, "Optimizer.learning_rate is nan: it must be positive"),
        ({"warmup": 100}, "Optimizer.warmup is 100: it must be a fraction"),
        ({"b2": 1.0}, "Optimizer.b2 is 1.0: it must be at least 0 and less than 1"),
        ({"weight_decay": -0.1}, "Optimizer.weight_decay is -0.1: it cannot be negative"),
        ({"clip": 0.0}, "Optimizer.clip is 0.0: it must be positive, or None"),
        ({"warmup": 0.5, "decay": 0.6}, "Optimizer.decay is 0.6: with warmup, 0.5, it exceeds the whole run"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimizer(**{"steps": 10, **settings})
