"""Generation: prompts of unequal length in, continuations out.

Prompts are right-aligned, so that all rows write the same cache slot; each row gives what it would alone. Prefill and a
chunk of decode steps are each compiled once for a shape and reused: prompts and room are rounded up to whole chunks.

Dimensions: B batch, L prompt length, N new tokens, V vocab.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .decoder import Decoder, Spec, init_cache, unembed
from .execution import Execution
from .pattern import Run

CHUNK = 32
"""Decode steps a compiled call; also what prompts and caches are rounded up to."""

MOST_UNROLLED = 32
"""Layers up to which decoding reads each layer's weights where they lie; deeper models scan, to compile faster."""


class Unrolled(Spec):
    """The same model with one run of all its layers, so that each has parameters and cache entries of its own.

    A scan copies a layer's weights out of their stack before it multiplies with them, all experts' too: decoding does
    little else than read weights, and this way reads those it needs once.
    """

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        return (Run(0, self.layers, 1),)


def decoded(spec: Spec) -> Spec:
    """The model as generation runs it: without multi-token prediction, and `Unrolled` if it is not too deep."""
    spec = spec if spec.mtp is None else spec.replace(mtp=None)
    if spec.depth > MOST_UNROLLED or all(run.repeats == 1 for run in spec.runs):
        return spec
    return Unrolled(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)})


def unrolled(spec: Spec, params: Any) -> tuple[Spec, Any]:
    """`decoded`, and its parameters: a copy where they are unrolled."""
    params = {name: of for name, of in params.items() if not name.startswith("mtp_")}
    run = decoded(spec)
    return run, _unstacked(spec, params) if isinstance(run, Unrolled) else params


@partial(jax.jit, static_argnums=0)
def _unstacked(spec: Spec, params: Any) -> Any:
    layers = {}
    for r, run in enumerate(spec.runs):
        for repeat in range(run.repeats):
            for position in range(len(run.period)):
                stack = params[f"run_{r}"][f"layer_{position}"]
                own = jax.tree.map(lambda leaf, i=repeat: leaf[i : i + 1], stack)
                layers[f"layer_{run.depth_of(position, repeat)}"] = own
    return {name: leaf for name, leaf in params.items() if not name.startswith("run_")} | {"run_0": layers}


def generate(
    spec: Spec,
    params: Any,
    prompts: Any,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    stop: Sequence[int] | None = None,
    seed: int = 0,
    execution: Execution | None = None,
    cache_dtype: str | None = None,
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The continuation only: int32 [batch, max_new_tokens].

    prompts: an int array [batch, length], or a list of int lists of unequal length.
    temperature: 0 takes the best token, else tokens are sampled by `seed`.
    stop: ids that end a row, None for spec.eos_ids, () for none; after one, the pad id (spec.pad_id, else 0).
    cache_dtype: default the execution's.

    Raises ValueError for an empty prompt, an id outside the vocabulary, or more tokens than spec.max_length.
    """
    execution = execution or Execution()
    rows = _checked(spec, prompts, max_new_tokens)
    stop = tuple(spec.eos_ids if stop is None else stop)
    spec, params = unrolled(spec, params)
    longest = max(map(len, rows))
    length = _rounded(longest)
    room = length + _rounded(max_new_tokens)
    pad_B = np.asarray([length - len(row) for row in rows], np.int32)
    tokens_BL = np.stack([np.pad(row, (pad, 0)) for row, pad in zip(rows, pad_B, strict=True)])

    dtype = cache_dtype or execution.dtype
    keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(len(rows)))
    logits_BV, cache = prefill(spec, execution, params, tokens_BL, pad_B, room, dtype)
    done_B = jnp.zeros(len(rows), bool)
    chunks: list[np.ndarray[Any, Any]] = []
    for start in range(0, max_new_tokens, CHUNK):
        new_BN, logits_BV, cache, done_B = decode(
            spec, execution, stop, temperature > 0, params, logits_BV, cache, done_B, keys_B, start, temperature
        )
        chunks.append(np.asarray(new_BN))
        if stop and bool(np.all(done_B)):
            break
    found = np.concatenate(chunks, axis=1)[:, :max_new_tokens]
    pad = 0 if spec.pad_id is None else spec.pad_id
    return np.pad(found, ((0, 0), (0, max_new_tokens - found.shape[1])), constant_values=pad).astype(np.int32)


def _checked(spec: Spec, prompts: Any, max_new_tokens: int) -> list[np.ndarray[Any, Any]]:
    rows = [np.asarray(row) for row in prompts]
    if not rows or max_new_tokens < 1:
        raise ValueError(f"generate needs at least one prompt and one new token, not {len(rows)} and {max_new_tokens}")
    for i, row in enumerate(rows):
        if row.ndim != 1 or not row.size or not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"prompt {i} must be a non-empty list of token ids, not {row.dtype} of shape {row.shape}")
        if row.min() < 0 or row.max() >= spec.vocab:
            raise ValueError(
                f"prompt {i} has token id {row.min() if row.min() < 0 else row.max()}, outside 0..{spec.vocab - 1}"
            )
        if len(row) + max_new_tokens > spec.max_length:
            raise ValueError(
                f"prompt {i} of {len(row)} tokens and {max_new_tokens} new ones exceed what the model takes: "
                f"spec.max_length is {spec.max_length}"
            )
    return [row.astype(np.int32) for row in rows]


def _rounded(count: int) -> int:
    return -(-count // CHUNK) * CHUNK


@partial(jax.jit, static_argnums=(0, 1, 5, 6))
def prefill(
    spec: Spec, execution: Execution, params: Any, tokens_BL: jax.Array, pad_B: jax.Array, room: int, dtype: str
) -> tuple[jax.Array, Any]:
    """The logits after the last token of each prompt [B, V], and the cache."""
    cache: Any = init_cache(spec, tokens_BL.shape[0], room, dtype, pad_B)
    model = Decoder(spec, execution)
    hidden_BLD, cache = model.apply({"params": params}, tokens_BL, cache, True, method="extend_hidden")
    return unembed(spec, params, hidden_BLD[:, -1], execution), cache


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(5, 6))
def decode(
    spec: Spec,
    execution: Execution,
    stop: tuple[int, ...],
    sample: bool,
    params: Any,
    logits_BV: jax.Array,
    cache: Any,
    done_B: jax.Array,
    keys_B: jax.Array,
    start: jax.Array,
    temperature: jax.Array,
) -> tuple[jax.Array, jax.Array, Any, jax.Array]:
    """CHUNK more tokens of each row [B, N]; rows that are done give the pad id."""
    model = Decoder(spec, execution)
    pad = 0 if spec.pad_id is None else spec.pad_id

    def step(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
        logits_BV, cache, done_B = carry
        chosen_B = sampled(logits_BV / temperature, keys_B, start + i, execution) if sample else best(logits_BV)
        chosen_B = jnp.where(done_B, pad, chosen_B)
        if stop:
            done_B = done_B | jnp.any(chosen_B[:, None] == jnp.asarray(stop), axis=1)
        logits_B1V, cache = model.apply({"params": params}, chosen_B[:, None], cache, method="extend")
        return (logits_B1V[:, 0], cache, done_B), chosen_B

    carry, chosen_NB = jax.lax.scan(step, (logits_BV, cache, done_B), jnp.arange(CHUNK))
    return chosen_NB.T, *carry


def best(logits_BV: jax.Array) -> jax.Array:
    """int32 [B]: the first of the largest logits, as max, compare and min of iota: Neuron does not compile argmax."""
    vocab = logits_BV.shape[-1]
    is_best = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_best, jnp.arange(vocab, dtype=jnp.int32), vocab - 1), axis=-1)


def sampled(logits_BV: jax.Array, keys_B: jax.Array, step: jax.Array, execution: Execution) -> jax.Array:
    """int32 [B]: a draw from the softmax of each row, by its own key (Gumbel-max: Gumbel 1954)."""
    if execution.target == "neuron":
        return best(logits_BV + _noise_by_rows(keys_B, step, logits_BV.shape[1]))
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, step), logits_BV.shape[1:]))(keys_B)
    return best(logits_BV + noise_BV)


def _noise_by_rows(keys_B: jax.Array, step: jax.Array, vocab: int) -> jax.Array:
    """Gumbel noise [B, V] from the generator that Neuron has: a row at a time, as it takes one state, whose last word
    is the step's.
    """
    words_BW = jnp.tile(jax.random.key_data(keys_B), (1, 2))[:, :3]
    states_BW = jnp.concatenate([words_BW, jnp.full((len(words_BW), 1), step).astype(jnp.uint32)], axis=1)
    default = jax.lax.RandomAlgorithm.RNG_DEFAULT
    bits_BV = jax.lax.map(lambda state_W: jax.lax.rng_bit_generator(state_W, (vocab,), algorithm=default)[1], states_BW)
    # The upper 24 bits, in the middle of their steps: neither 0 nor 1.
    uniform_BV = ((bits_BV >> 8).astype(jnp.float32) + 0.5) * 2.0**-24
    return -jnp.log(-jnp.log(uniform_BV))
