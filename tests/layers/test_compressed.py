"""Compressed attention of every kind equals the paper's equations, run by run and query by query, also over packed
documents; and decodes as it reads."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.block import pre_norm
from archzoo.layers.compressed import QUERY_BLOCK, Chooser, CompressedAttention, Compressor
from archzoo.layers.decoder import Spec, document_positions, init_cache
from archzoo.layers.execution import Execution
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.norms import RMSNorm
from archzoo.layers.rope import Rope
from archzoo.layers.spec import Context

from . import reference
from .conftest import LAYER, MODEL, close, extend, forward, normal, params_of, tokens_of

WIDTH = 10
LOCAL = CompressedAttention(
    heads=4,
    groups=2,
    head_dim=8,
    q_rank=6,
    out_rank=5,
    rope=Rope(dim=4, theta=50.0, interleaved=True),
    window=5,
    norm=RMSNorm(eps=1e-5),
)
CHOOSER = Chooser(heads=9, dim=6, top_k=2)
SPECS = {
    "window": LOCAL,
    "heavy": replace(LOCAL, compressor=Compressor(every=3)),
    "overlapping": replace(LOCAL, compressor=Compressor(every=3, overlap=True)),
    "sparse": replace(LOCAL, compressor=Compressor(every=3, overlap=True, chooser=CHOOSER)),
    "chosen_without_overlap": replace(LOCAL, compressor=Compressor(every=2, chooser=CHOOSER)),
}


# --- the equations ---------------------------------------------------------------------------------------------------


def turned(x: Any, position: float, rope: Rope) -> Any:
    """The last dimensions of a vector, rotated."""
    kept, last = np.split(x, [len(x) - rope.dim])
    at = np.full((1, 1), position)
    return np.concatenate([kept, reference.rotate(last[None, None], at, rope)[0, 0]])


def entries(spec: CompressedAttention, p: Any, x_LD: Any, dim: int) -> list[Any]:
    """Eqs. 9-12 and 20-23 of one document: the entry of each whole run, channel by channel."""
    assert spec.compressor is not None
    every, overlap = spec.compressor.every, spec.compressor.overlap
    c, z, bias = x_LD @ p["w_DU"], x_LD @ p["w_gate_DU"], p["bias_TU"]
    found = []
    for start in range(0, len(x_LD) - every + 1, every):
        entry = np.zeros(dim)
        for e in range(dim):
            own = e + dim * overlap
            terms = [(z[start + j, own] + bias[j, own], c[start + j, own]) for j in range(every)]
            if overlap and start:
                before = start - every
                terms += [(z[before + j, e] + bias[j, e], c[before + j, e]) for j in range(every)]
            odds, values = map(np.array, zip(*terms, strict=True))
            entry[e] = reference.softmax(odds) @ values
        entry = reference.norm(spec.norm, p["entry_norm"], entry)
        found.append(turned(entry, start, spec.rope))
    return found


def attention(spec: CompressedAttention, p: Any, x_LD: Any) -> Any:
    """One document: a query at a time, with what it sees in a list."""
    every = spec.compressor.every if spec.compressor else len(x_LD) + 1
    chooser = spec.compressor.chooser if spec.compressor else None
    latents = reference.norm(spec.norm, p["q_norm"], x_LD @ p["wq_down_DQ"])
    keys = reference.norm(spec.norm, p["k_norm"], x_LD @ p["wk_DE"])
    keys = [turned(key, s, spec.rope) for s, key in enumerate(keys)]
    pooled = entries(spec, p["compressor"], x_LD, spec.head_dim) if spec.compressor else []
    index = entries(spec, p["index"], x_LD, chooser.dim) if chooser else []
    wq = p["wq_up_QKGE"].reshape(spec.q_rank, spec.heads, spec.head_dim)
    y = np.zeros_like(x_LD)
    for t, latent in enumerate(latents):
        ended = [i for i in range(len(pooled)) if (i + 1) * every <= t + 1]
        if chooser:
            asked = np.einsum("q,qie->ie", latent, p["w_index_QIE"])
            asked = np.stack([turned(q, t, spec.rope) for q in asked])
            weights = x_LD[t] @ p["w_index_DI"]
            ended = sorted(ended, key=lambda i: -(weights @ np.maximum(asked @ index[i], 0)))[: chooser.top_k]
        seen = np.stack(keys[max(t - spec.window + 1, 0) : t + 1] + [pooled[i] for i in ended])
        heads = []
        for h in range(spec.heads):
            q = turned(reference.rms_norm(latent @ wq[:, h], 1.0, spec.norm.eps), t, spec.rope)
            scores = np.append(seen @ q * spec.head_dim**-0.5, p["sinks_KG"].ravel()[h])
            heads.append(turned(reference.softmax(scores)[:-1] @ seen, -t, spec.rope))
        of_group = np.stack(heads).reshape(spec.groups, -1)
        down = p["wo_down_KGEC"].reshape(spec.groups, -1, spec.out_rank)
        y[t] = np.concatenate([out @ w for out, w in zip(of_group, down, strict=True)]) @ p["wo_up_AD"]
    return y


# --- the layer -------------------------------------------------------------------------------------------------------


def layer(spec: CompressedAttention, x: Any, segments: Any) -> tuple[Any, Any]:
    """Random parameters in float64, and what the layer gives."""
    shell, slots = spec.shell(Execution()), jnp.arange(x.shape[1])
    context = Context(document_positions(segments), segments, jnp.zeros(x.shape[:2], int), slots, None)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, context, None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    p = jax.tree.unflatten(tree, [0.5 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])
    y = jax.jit(lambda p, x: shell.apply({"params": p}, x, context, None)[0])(p, x)
    return jax.tree.map(reference.f64, p), y


@pytest.mark.parametrize("name", SPECS)
def test_each_document_is_the_equations(name: str) -> None:
    lengths = ((13, 4, 3), (1, 14, 5))  # the last is padding
    segments = jnp.asarray([np.repeat((1, 2, 0), row) for row in lengths], jnp.int32)
    x = normal(0, *segments.shape, WIDTH)
    p, y = layer(SPECS[name], x, segments)
    for b, (first, second, _) in enumerate(lengths):
        for document in (slice(0, first), slice(first, first + second)):
            close(y[b, document], attention(SPECS[name], p, reference.f64(x[b, document])), LAYER)


def test_many_queries_see_what_few_do() -> None:
    """Longer than one block of queries, so that blocks see across their edges."""
    x = normal(0, 1, QUERY_BLOCK + 9, WIDTH)
    p, y = layer(SPECS["sparse"], x, jnp.ones(x.shape[:2], jnp.int32))
    close(y[0], attention(SPECS["sparse"], p, reference.f64(x[0])), LAYER)


def test_decoding_equals_reading() -> None:
    """In pieces that end inside of runs and at their ends, with a row that begins with padding."""
    kinds = {"attention": SPECS["sparse"], "mlp": GatedMLP(ffn=6), "block": pre_norm(RMSNorm())}
    spec = Spec(vocab=23, width=WIDTH, depth=1, **kinds)
    params, tokens, pad = params_of(spec), tokens_of(spec, 2, 12), 2
    segments = jnp.ones_like(tokens).at[1, :pad].set(0)
    whole = forward(spec, params, tokens, segments)
    cache, done = init_cache(spec, 2, 12, "float32", pad_B=jnp.array([0, pad])), 0
    for size in (4, 1, 3, 1, 1, 2):
        logits, cache = extend(spec, params, tokens[:, done : done + size], cache)
        for row, start in ((0, 0), (1, max(pad - done, 0))):
            close(logits[row, start:], whole[row, done + start : done + size], MODEL)
        done += size


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0}, "window is 0: it must be positive"),
        ({"groups": 3}, "heads is 4: it must be a multiple of groups, which is 3"),
        ({"rope": Rope(dim=10)}, r"rope\.dim is 10: it cannot exceed head_dim, which is 8"),
        ({"rope": Rope(dim=8)}, r"rope\.dim is 8: it cannot exceed chooser\.dim, which is 6"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPECS["sparse"], **fields)
