"""The placement of norms around attention and MLP is what its name says, whatever the layers are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

from archzoo.layers.block import Parallel, Residual, inner_post_norm, post_norm, pre_norm, sandwich_norm
from archzoo.layers.execution import Execution
from archzoo.layers.norms import LayerNorm, RMSNorm

from . import reference
from .conftest import LAYER, close, normal


@dataclass(frozen=True)
class Affine:
    """y = times * x + plus: a layer that the block has never heard of."""

    times: float
    plus: float

    def shell(self, execution: Execution) -> nn.Module:
        return AffineShell(self)


class AffineShell(nn.Module):
    spec: Affine

    def __call__(self, x_BLD: Any, context: Any, cache: Mapping[str, Any] | None) -> tuple[Any, Any, Any]:
        held = 0 if cache is None else cache["total"]
        return self.spec.times * x_BLD + self.spec.plus, {"total": held + x_BLD.sum()}, {"times": self.spec.times}


ATTENTION, MLP = Affine(3.0, 1.0), Affine(-2.0, 0.5)
NORM = RMSNorm(eps=1e-3)
PLACEMENTS = {
    "pre": (pre_norm(NORM), {"before"}),
    "post": (post_norm(NORM), {"outer"}),
    "sandwich": (sandwich_norm(NORM), {"before", "after"}),
    "inner_post": (inner_post_norm(NORM), {"after"}),
    "none": (Residual(), set()),
    "scaled": (pre_norm(NORM, scale=0.25), {"before"}),
    "all_different": (
        Residual(before=LayerNorm(), after=NORM, outer=RMSNorm(zero_centred=True)),
        {"before", "after", "outer"},
    ),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_placement_equals_its_formula(name: str) -> None:
    spec, places = PLACEMENTS[name]
    shell, x = spec.shell(Execution(), ATTENTION, MLP), normal(0, 2, 3, 8)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, None, None), jax.random.key(0)).get("params", {})
    assert set(shapes) == {f"{part}_{place}" for part in ("attention", "mlp") for place in places}
    leaves, tree = jax.tree.flatten(shapes)
    p = jax.tree.unflatten(tree, [normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])

    y = x.astype(np.float64)
    for part, layer in (("attention", ATTENTION), ("mlp", MLP)):
        before, after, outer = (p.get(f"{part}_{place}", {}) for place in ("before", "after", "outer"))
        f = layer.times * reference.norm(spec.before, before, y) + layer.plus
        y = reference.norm(spec.outer, outer, y + spec.scale * reference.norm(spec.after, after, f))
    close(jax.jit(lambda p, x: shell.apply({"params": p}, x, None, None)[0])(p, x), y, LAYER)


@pytest.mark.parametrize("before", [None, LayerNorm(bias=False)], ids=["plain", "normalised"])
def test_the_parts_of_a_parallel_block_see_the_same_input(before: LayerNorm | None) -> None:
    shell, x = Parallel(before=before).shell(Execution(), ATTENTION, MLP), normal(0, 2, 3, 8)
    p = {"before": {"scale_D": normal(1, 8)}} if before else {}
    y = reference.norm(before, p.get("before", {}), x.astype(np.float64))
    expected = x + (ATTENTION.times * y + ATTENTION.plus) + (MLP.times * y + MLP.plus)
    found, entries, aux = shell.apply({"params": p}, x, None, {part: {"total": 1.0} for part in ("attention", "mlp")})
    close(found, expected, LAYER)
    close(entries["mlp"]["total"], 1 + y.sum(), LAYER)
    assert aux == {"attention": {"times": 3.0}, "mlp": {"times": -2.0}}


def test_each_part_gets_its_own_cache_and_returns_its_own_statistics() -> None:
    shell, x = Residual().shell(Execution(), ATTENTION, MLP), normal(0, 1, 2, 4)
    held = {"attention": {"total": 10.0}, "mlp": {"total": 20.0}}
    run: Any = shell.apply
    _, entries, aux = run({}, x, None, held)
    close(entries["attention"]["total"], 10 + x.sum(), LAYER)
    close(entries["mlp"]["total"], 20 + (4 * x + 1).sum(), LAYER)
    assert aux == {"attention": {"times": 3.0}, "mlp": {"times": -2.0}}
