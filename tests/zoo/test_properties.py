"""What every architecture must hold, on one case of each family."""

import json
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo import Decoder, Spec, init_cache, load_hf

from .cases import FIRST, GOLDENS, Case

LENGTH, SPLIT = 18, 7
CLOSE = 2e-4
"""Of two ways to compute the same logits, relative to their standard deviation."""


class Model(NamedTuple):
    spec: Spec
    params: Any


@pytest.fixture(
    scope="module",
    params=FIRST,
    ids=lambda case: case.name,
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    case: Case = request.param
    directory = tmp_path_factory.mktemp(case.name)
    case.write(directory, json.loads((GOLDENS / f"{case.name}.json").read_text())["tensors"])
    return Model(*load_hf(directory))


@partial(jax.jit, static_argnums=0)
def whole(spec: Spec, params: Any, tokens: Any, segments: Any) -> Any:
    return Decoder(spec).apply({"params": params}, tokens, segments)


@partial(jax.jit, static_argnums=0)
def extended(spec: Spec, params: Any, tokens: Any, cache: Any) -> Any:
    return Decoder(spec).apply({"params": params}, tokens, cache, method="extend")


def tokens_of(spec: Spec) -> Any:
    return np.random.default_rng(0).integers(0, spec.vocab, (2, LENGTH), dtype=np.int32)


def alone(model: Model, *rows: Any) -> list[Any]:
    """The logits of each row as its own sequence; what follows it up to LENGTH cannot matter to it."""
    padded = np.stack([np.pad(row, (0, LENGTH - len(row))) for row in rows])
    return [logits[: len(row)] for logits, row in zip(whole(*model, padded, None), rows, strict=True)]


def assert_close(found: Any, expected: Any) -> None:
    assert np.max(np.abs(np.asarray(found) - np.asarray(expected))) < CLOSE * np.std(expected)


def test_decoding_equals_prefill(model: Model) -> None:
    spec, params = model
    tokens = tokens_of(spec)
    expected = whole(spec, params, tokens, None)
    logits, cache = extended(spec, params, tokens[:, :SPLIT], init_cache(spec, 2, LENGTH, "float32"))
    assert_close(logits, expected[:, :SPLIT])
    for t in range(SPLIT, LENGTH):
        logits, cache = extended(spec, params, tokens[:, t : t + 1], cache)
        assert_close(logits[:, 0], expected[:, t])


def test_a_padded_row_decodes_as_it_does_alone(model: Model) -> None:
    spec, params = model
    tokens, pad = tokens_of(spec), np.array([0, 3], np.int32)
    expected, _ = alone(model, tokens[1, 3:], tokens[0])
    logits, cache = extended(spec, params, tokens[:, :SPLIT], init_cache(spec, 2, LENGTH, "float32", pad))
    assert_close(logits[1, 3:], expected[: SPLIT - 3])
    for t in range(SPLIT, LENGTH):
        logits, cache = extended(spec, params, tokens[:, t : t + 1], cache)
        assert_close(logits[1, 0], expected[t - 3])


def test_nothing_flows_back_from_later_tokens(model: Model) -> None:
    """The gradient of one position's output by the embeddings of all: each position has a token of its own."""
    spec, params = model
    tokens = jnp.arange(LENGTH, dtype=jnp.int32)[None]

    @jax.jit
    def gradient(params: Any) -> Any:
        def output(params: Any) -> Any:
            hidden, _ = Decoder(spec).apply({"params": params}, tokens, method="hidden")
            return jnp.sum(hidden[0, SPLIT] * jnp.cos(jnp.arange(spec.width)))

        return jax.grad(output)(params)["embed_VD"]

    by_position = np.abs(np.asarray(gradient(params))).max(axis=-1)
    assert np.all(by_position[SPLIT + 1 : LENGTH] == 0)
    assert np.all(by_position[SPLIT - 1 : SPLIT + 1] > 0)


def test_packed_documents_are_what_they_are_alone(model: Model) -> None:
    spec, params = model
    tokens = tokens_of(spec)
    segments = np.array([[1] * SPLIT + [2] * (LENGTH - SPLIT - 2) + [0] * 2] * 2, np.int32)
    packed = whole(spec, params, tokens, segments)
    first, second = alone(model, tokens[0, :SPLIT], tokens[0, SPLIT:-2])
    assert_close(packed[0, :SPLIT], first)
    assert_close(packed[0, SPLIT:-2], second)
