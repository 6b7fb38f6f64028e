"""A corrected norm is an RMSNorm whose result grows as the rank shrinks: what is read out varies the same."""

import jax
import numpy as np
import pytest

from archzoo.layers.corrected import CorrectedNorm
from archzoo.layers.decoder import Spec
from archzoo.layers.execution import Execution
from archzoo.layers.latent import LatentAttention
from archzoo.layers.rope import Rope
from archzoo.layers.single import Absent, Single
from archzoo.layers.spec import from_plain, to_plain

from .conftest import LAYER, close, normal


@pytest.mark.parametrize("rank", [3, 12, 24])
def test_it_equals_the_formula(rank: int) -> None:
    spec, x = CorrectedNorm(width=12, eps=1e-3), normal(0, 2, 5, rank)
    scale = normal(1, rank)
    y = jax.jit(lambda s, x: spec.shell(Execution(), "C").apply({"params": {"scale_C": s}}, x))(scale, x)
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt(np.mean(x64**2, axis=-1, keepdims=True) + 1e-3) * scale * np.sqrt(12 / rank)
    close(y, expected, LAYER)


def test_the_variance_of_what_is_read_out_does_not_depend_on_the_rank() -> None:
    width, variances = 64, []
    for rank in (8, 32):
        x, w = normal(0, 400, rank), normal(1, rank, 500) * width**-0.5
        norm = CorrectedNorm(width=width).shell(Execution())
        y = norm.apply({"params": {"scale_D": np.ones(rank, np.float32)}}, x)
        variances.append(float(np.var(np.asarray(y) @ w)))
    np.testing.assert_allclose(variances, 1, rtol=0.15)


def test_inside_a_model_the_width_is_the_models() -> None:
    latent = LatentAttention(heads=2, nope_dim=4, value_dim=4, kv_rank=4, rope=Rope(dim=4), norm=CorrectedNorm())
    parts = {"attention": latent, "mlp": Absent(), "block": Single()}
    spec = Spec(vocab=11, width=16, depth=2, **parts, max_length=8)
    for wide in (spec, spec.replace(width=36)):
        norms = [layer.attention.norm for layer in wide.layers]
        assert norms == [CorrectedNorm(width=wide.width)] * 2
    assert spec.attention == (latent,)  # what the spec says stays open


def test_it_survives_json_and_refuses_no_width() -> None:
    for norm in (CorrectedNorm(width=8), CorrectedNorm()):
        assert from_plain(to_plain(norm)) == norm
    with pytest.raises(ValueError, match="width is 0"):
        CorrectedNorm(width=0)
    with pytest.raises(ValueError, match="width is None: outside of a model it must be stated"):
        CorrectedNorm().shell(Execution())
