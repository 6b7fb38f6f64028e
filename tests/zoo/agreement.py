"""What archzoo makes of a checkpoint, and how far that is from a reference."""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from archzoo import Decoder, Spec, generate, load_hf, save_hf
from archzoo.zoo.tensors import open_checkpoint

Array = np.ndarray[Any, Any]


@partial(jax.jit, static_argnums=0)
def _forward(spec: Spec, params: Any, tokens: Array) -> Any:
    return Decoder(spec).apply({"params": params}, tokens)


def logits(spec: Spec, params: Any, tokens: Array) -> Array:
    """float32 [batch, length, vocab]."""
    found: Array = np.asarray(_forward(spec, params, tokens.astype(np.int32)))
    return found


def error(found: Array, reference: Array) -> float:
    """The largest difference, relative to the standard deviation of the reference."""
    if found.shape != reference.shape:
        raise ValueError(f"logits of shape {found.shape} against {reference.shape}")
    return float(np.max(np.abs(found.astype(np.float64) - reference)) / np.std(reference))


class Greedy(NamedTuple):
    """`agreed` of `asked` greedy tokens; where the reference's two best logits tie, a row is asked no further."""

    agreed: int
    asked: int


def greedy(spec: Spec, params: Any, prompts: Array, tokens: Array, margins: Array, tie: float) -> Greedy:
    """Our greedy continuations of prompts [batch, length] against the reference's `tokens` [batch, new].

    margins [batch, new]: of the reference's best logit over its second; a step with less than `tie` may go either
    way."""
    found = generate(spec, params, prompts, max_new_tokens=tokens.shape[1], stop=())
    decided = np.logical_and.accumulate(margins > tie, axis=1)
    same = np.logical_and.accumulate(found == tokens, axis=1)
    return Greedy(int(np.sum(same & decided)), int(np.sum(decided)))


def tensor_differences(first: Path, second: Path) -> list[str]:
    """The tensors in which two directories differ, by a bit or by being there."""
    a, b = open_checkpoint(first), open_checkpoint(second)
    common = [name for name in a if name in b]
    differ = [
        name
        for name in common
        if (a.dtype(name), a.shape(name)) != (b.dtype(name), b.shape(name))
        or a.read(name).tobytes() != b.read(name).tobytes()
    ]
    return sorted({*a, *b} - set(common)) + differ


def field_differences(first: Path, second: Path) -> list[str]:
    """The fields in which the configs of two directories differ."""
    a, b = (json.loads((directory / "config.json").read_text()) for directory in (first, second))
    return sorted(field for field in {*a, *b} if field not in a or field not in b or a[field] != b[field])


def round_trip(directory: Path, scratch: Path) -> list[str]:
    """Hugging Face -> archzoo -> Hugging Face: the tensors and config fields that differ."""
    save_hf(scratch, *load_hf(directory))
    return tensor_differences(directory, scratch) + field_differences(directory, scratch)
