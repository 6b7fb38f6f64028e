"""Any attention with any MLP, router and norm placement: random models drawn from the layers of the whole zoo hold what
the published ones hold."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo import Decoder, Spec, spec_from_hf, spec_to_hf
from archzoo.layers.single import Single

from .cases import CONFIGS
from .test_properties import (
    LENGTH,
    Model,
    test_a_padded_row_decodes_as_it_does_alone,
    test_decoding_equals_prefill,
    test_nothing_flows_back_from_later_tokens,
    test_packed_documents_are_what_they_are_alone,
    tokens_of,
)

__all__ = [
    "test_a_padded_row_decodes_as_it_does_alone",
    "test_decoding_equals_prefill",
    "test_nothing_flows_back_from_later_tokens",
    "test_packed_documents_are_what_they_are_alone",
]

DEFAULT, MORE = 4, 8
"""How many draws the default suite makes, and how many more the slow one."""

WIDTH, VOCAB = 32, 64


def drawn(seed: int) -> Spec:
    """Two kinds of attention, of MLP and of block over three layers, of which the middle one may be of either kind."""
    rng = np.random.default_rng(seed)
    specs = [spec_from_hf(config) for config in CONFIGS.values()]
    everything = [layer for spec in specs if spec.per_layer is None for layer in spec.layers]  # those read its tables
    zoo = [layer for layer in everything if not isinstance(layer.block, Single)]  # which takes one mixer alone

    def two(part: str) -> tuple[object, ...]:
        kinds = list(dict.fromkeys(getattr(layer, part) for layer in zoo))
        by_type = {type(kind): [k for k in kinds if type(k) is type(kind)] for kind in kinds}
        chosen = [list(by_type)[rng.integers(len(by_type))] for _ in range(2)]
        return tuple(by_type[kind][rng.integers(len(by_type[kind]))] for kind in chosen)

    attention, mlp, block = two("attention"), two("mlp"), two("block")
    if len({getattr(kind, "streams", 1) for kind in block}) > 1:
        block = block[:1]  # as many streams run through all layers
    return Spec(
        vocab=VOCAB,
        width=WIDTH,
        depth=3,
        attention=attention,
        mlp=mlp,
        block=block,
        tied=bool(rng.integers(2)),
        max_length=64,
    )


@pytest.fixture(
    scope="module",
    params=[pytest.param(s, marks=() if s < DEFAULT else pytest.mark.slow) for s in range(DEFAULT + MORE)],
    ids="draw_{}".format,
)
def model(request: pytest.FixtureRequest) -> Model:
    spec = drawn(request.param)
    return Model(spec, Decoder(spec).init(jax.random.key(request.param), None)["params"])


def test_gradients_are_finite(model: Model) -> None:
    spec, params = model

    @jax.jit
    def gradient(params: object) -> object:
        def loss(params: object) -> jax.Array:
            logits = Decoder(spec).apply({"params": params}, tokens_of(spec))
            return jnp.mean(jnp.square(logits))

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.all(np.isfinite(leaf)), path


def test_it_survives_json(model: Model) -> None:
    assert Spec.from_json(model.spec.to_json()) == model.spec


def test_an_export_is_refused_with_a_reason_or_reads_back_as_the_same_model(model: Model) -> None:
    try:
        config = spec_to_hf(model.spec)
    except ValueError:
        with pytest.raises(ValueError, match="Hugging Face cannot hold this model: "):
            spec_to_hf(model.spec)
    else:
        assert spec_from_hf(json.loads(json.dumps(config))).layers == model.spec.layers


def test_draws_differ_and_cover_kinds() -> None:
    specs = [drawn(seed) for seed in range(DEFAULT + MORE)]
    assert len(set(specs)) == len(specs)
    for part in ("attention", "mlp", "block"):
        assert len({type(getattr(layer, part)) for spec in specs for layer in spec.layers}) > (part != "block")
    assert specs[0].max_length >= LENGTH
