"""Decoding from parameters of one layer each is decoding from stacks, and deep models keep their stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers import decoding
from archzoo.layers.decoder import param_shapes
from archzoo.layers.decoding import sampled, unrolled
from archzoo.layers.execution import Execution

from .conftest import MODEL, SPECS, close, forward, params_of, tokens_of

BATCH, LENGTH = 3, 19  # as in test_cache.py, so that they share what is compiled


@pytest.mark.parametrize("name", SPECS)
def test_the_unrolled_model_is_the_same_model(name: str) -> None:
    spec, params = SPECS[name], params_of(SPECS[name])
    flat, own = unrolled(spec, params)
    assert jax.tree.map(lambda leaf: leaf.shape, own) == jax.tree.map(lambda leaf: leaf.shape, param_shapes(flat))
    assert flat.param_count() == spec.param_count()
    assert flat.cache_bytes(2, 8) == spec.cache_bytes(2, 8)
    tokens = tokens_of(spec, BATCH, LENGTH)
    close(forward(flat, own, tokens), forward(spec, params, tokens), MODEL)


def test_a_deep_model_keeps_its_stacks() -> None:
    spec = next(iter(SPECS.values())).replace(depth=decoding.MOST_UNROLLED + 1)
    shapes = param_shapes(spec)
    assert unrolled(spec, shapes) == (spec, shapes)


def test_generation_is_that_of_the_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = next(iter(SPECS.values()))
    params, prompts = params_of(spec), [[1, 2, 3], [4]]
    found = decoding.generate(spec, params, prompts, 8, stop=())
    monkeypatch.setattr(decoding, "MOST_UNROLLED", 0)
    np.testing.assert_array_equal(found, decoding.generate(spec, params, prompts, 8, stop=()))


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_on_neuron_a_row_draws_from_its_softmax_by_its_own_key(impl: str) -> None:
    rows, share = 4096, np.array([0.5, 0.3, 0.15, 0.05])
    keys, logits = jax.random.split(jax.random.key(0, impl=impl), rows), jnp.log(jnp.tile(share, (rows, 1)))
    draw = jax.jit(lambda logits, keys, step: sampled(logits, keys, step, Execution(target="neuron")))
    drawn = np.asarray(draw(logits, keys, jnp.int32(3)))
    # Five standard deviations of the rarest and of the commonest.
    assert np.abs(np.bincount(drawn, minlength=4) / rows - share).max() < 5 * np.sqrt(0.25 / rows)
    assert np.mean(drawn == np.asarray(draw(logits, keys, jnp.int32(4)))) < 0.5
    np.testing.assert_array_equal(draw(logits[7:8], keys[7:8], jnp.int32(3)), drawn[7:8])
