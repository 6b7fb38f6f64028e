"""A ring holds the latest tokens, and decoding through a cache, in whatever pieces and with whatever padding, gives
what one forward pass over the whole sequence gives."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.attention import Attention
from archzoo.layers.cache import held_slots, store
from archzoo.layers.decoder import cache_shapes, init_cache
from archzoo.layers.latent import LatentAttention
from archzoo.layers.spec import Context

from .conftest import MODEL, SPECS, close, extend, forward, params_of, tokens_of

BATCH, LENGTH, WINDOW = 3, 19, 3
CHUNKS = (7, 4, 7, 1)  # 7 is more than two windows and goes in blocks; 4 is more than one


# --- the ring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [(1,) * 13, (5, 5, 1, 2), (3, 1, 4, 1, 5)])
@pytest.mark.parametrize("pads", [(0, 0), (0, 4)])
def test_a_ring_holds_the_latest_token_of_each_slot(chunks: tuple[int, ...], pads: tuple[int, ...]) -> None:
    size, end, entry = 5, 0, jnp.zeros((1, 2, 5), jnp.int32)  # one layer, two rows; the entry of token t is t
    for chunk in chunks:
        new = np.broadcast_to(np.arange(end, end + chunk, dtype=np.int32), (1, 2, chunk))
        end += chunk
        entry = store(entry, jnp.asarray(new), jnp.int32(end))
        latest = [max((t for t in range(end) if t % size == j), default=-1) for j in range(size)]
        context = Context(None, None, None, jnp.arange(end, end + 3), jnp.asarray(pads))  # type: ignore[arg-type]
        held = np.asarray(held_slots(context, size))
        for row, pad in enumerate(pads):
            assert held[row].tolist() == [t if t >= pad else -1 for t in latest]
            stored = np.asarray(entry)[0, row]
            assert all(stored[j] == t for j, t in enumerate(latest) if t >= 0)


def test_a_cache_needs_to_know_its_padding() -> None:
    zero = jnp.zeros((1, 1), int)
    with pytest.raises(ValueError, match="how many slots of each row are padding"):
        held_slots(Context(zero, None, zero, zero[0], None), 4)


# --- decoding --------------------------------------------------------------------------------------------------------


@cache
def model(name: str) -> tuple[Any, Any, Any, Any]:
    """A spec, its parameters, tokens, and the logits of one forward pass."""
    spec = SPECS[name]
    params, tokens = params_of(spec), tokens_of(spec, BATCH, LENGTH)
    return spec, params, tokens, forward(spec, params, tokens)


def decoded(spec: Any, params: Any, tokens: Any, chunks: tuple[int, ...], held: Any) -> tuple[Any, Any]:
    """The logits of all tokens, given to the cache in pieces, and the cache after them."""
    logits, start = [], 0
    for chunk in chunks:
        out, held = extend(spec, params, tokens[:, start : start + chunk], held)
        logits.append(out)
        start += chunk
    return np.concatenate(logits, axis=1), held


def empty(spec: Any, pads: Any = None) -> Any:
    return init_cache(spec, BATCH, LENGTH, "float32", pads)


@pytest.mark.parametrize("name", SPECS)
def test_decoding_step_by_step_equals_the_forward_pass(name: str) -> None:
    spec, params, tokens, logits = model(name)
    close(decoded(spec, params, tokens, (1,) * LENGTH, empty(spec))[0], logits, MODEL)


@pytest.mark.parametrize("name", SPECS)
def test_prefill_in_odd_pieces_equals_the_forward_pass(name: str) -> None:
    spec, params, tokens, logits = model(name)
    close(decoded(spec, params, tokens, CHUNKS, empty(spec))[0], logits, MODEL)


@pytest.mark.parametrize("name", SPECS)
def test_pieces_leave_the_cache_that_steps_leave(name: str) -> None:
    spec, params, tokens, _ = model(name)
    _, pieces = decoded(spec, params, tokens, CHUNKS, empty(spec))
    _, steps = decoded(spec, params, tokens, (1,) * LENGTH, empty(spec))
    close(pieces, steps, MODEL)
    assert pieces["end"] == LENGTH


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("pads", [(0, 0, 0), (0, 4, 2)])
def test_prefill_of_an_empty_cache_equals_prefill_that_looks_at_it(name: str, pads: tuple[int, ...]) -> None:
    spec, params, tokens, _ = model(name)
    held = empty(spec, jnp.asarray(pads))
    real = (np.arange(7) >= np.array(pads)[:, None])[..., None]
    (looked, after), (trusted, after_trusted) = (
        extend(spec, params, tokens[:, :7], held, empty=word) for word in (False, True)
    )
    close(np.where(real, trusted, 0), np.where(real, looked, 0), MODEL)
    later = tokens[:, 7:11]
    close(extend(spec, params, later, after_trusted)[0], extend(spec, params, later, after)[0], MODEL)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("steps", [(1,) * 12, (4, 7, 1)], ids=["steps", "pieces"])
def test_each_row_of_unequal_prompts_equals_that_row_alone(name: str, steps: tuple[int, ...]) -> None:
    """Prompts of 7, 3 and 5 tokens, right-aligned: two are longer than the window, and its ring wraps in decoding."""
    spec, params, tokens, _ = model(name)
    pads = np.array([0, 4, 2])
    aligned = np.stack([np.roll(row, pad) for row, pad in zip(tokens, pads, strict=True)])  # the end moves to the front
    got, _ = decoded(spec, params, aligned, (7, *steps), empty(spec, jnp.asarray(pads)))
    alone = forward(spec, params, tokens)  # rows are apart, and what follows a token does not change it
    for row, pad in enumerate(pads):
        close(got[row, pad:], alone[row, : LENGTH - pad], MODEL)
    assert np.all(np.isfinite(got))


def test_a_row_among_others_equals_its_own_batch_of_one() -> None:
    spec, params, tokens, logits = model("mixed")
    close(forward(spec, params, tokens[1:2])[0], logits[1], MODEL)


def test_what_padding_holds_changes_nothing() -> None:
    spec, params, tokens, _ = model("mixed")
    pads = jnp.asarray([0, 4, 2])
    other = np.where(np.arange(LENGTH) < np.asarray(pads)[:, None], (tokens + 1) % spec.vocab, tokens)
    one, two = (decoded(spec, params, t, CHUNKS, empty(spec, pads))[0] for t in (tokens, other))
    for row, pad in enumerate(np.asarray(pads)):
        close(one[row, pad:], two[row, pad:], MODEL)


# --- what is allocated -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cache_bytes_are_what_init_cache_allocates(name: str, dtype: str) -> None:
    spec = SPECS[name]
    allocated = sum(leaf.nbytes for leaf in jax.tree.leaves(init_cache(spec, BATCH, LENGTH, dtype)))
    assert spec.cache_bytes(batch=BATCH, length=LENGTH, dtype=dtype) == allocated


def test_each_layer_allocates_what_it_must_remember() -> None:
    spec, item = SPECS["mixed"], 2
    a_token = {
        "ring": 2 * 1 * 8,  # one key and one value of one head
        "full": 2 * 2 * 8,  # of two heads
        "latent": 5 + 4,  # the latent and one rotated key
    }
    expected = a_token["ring"] * WINDOW + a_token["full"] * LENGTH + a_token["latent"] * LENGTH
    assert [type(layer.attention) for layer in spec.layers] == [Attention, Attention, LatentAttention]
    bookkeeping = 4 + 4 * BATCH  # `end` and the padding of each row
    assert spec.cache_bytes(batch=BATCH, length=LENGTH, dtype="bfloat16") == BATCH * expected * item + bookkeeping
    longer = spec.cache_bytes(batch=BATCH, length=LENGTH + 1, dtype="bfloat16")
    grown = (a_token["full"] + a_token["latent"]) * item * BATCH
    assert longer - spec.cache_bytes(batch=BATCH, length=LENGTH, dtype="bfloat16") == grown


@pytest.mark.parametrize("name", SPECS)
def test_extending_keeps_the_shapes_and_dtypes_of_the_cache(name: str) -> None:
    spec, params, tokens, _ = model(name)
    held = cache_shapes(spec, BATCH, LENGTH, "bfloat16")
    _, after = jax.eval_shape(partial(extend, spec), params, tokens[:, :1], held)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), held)


def test_a_new_cache_is_empty() -> None:
    held = init_cache(SPECS["ring"], BATCH, LENGTH, "bfloat16")
    assert held["end"] == 0
    assert not np.any(held["pad_B"])
    assert not any(np.any(np.asarray(leaf, np.float32)) for leaf in jax.tree.leaves(held))
