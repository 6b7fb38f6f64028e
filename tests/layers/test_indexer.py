"""A query with an indexer sees the tokens that score best, and no others."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers import indexer
from archzoo.layers.execution import Execution
from archzoo.layers.indexer import Borrowed, Indexer
from archzoo.layers.latent import LatentAttention
from archzoo.layers.rope import Rope
from archzoo.layers.spec import Context

from . import reference
from .conftest import LAYER, close, largest, normal

BATCH, LENGTH, WIDTH, TOP_K = 2, 11, 16, 4
ROPE = Rope(dim=4)
INDEXER = Indexer(heads=9, dim=6, top_k=TOP_K, rope=ROPE)
SPEC = LatentAttention(heads=3, nope_dim=4, value_dim=6, kv_rank=5, rope=ROPE, q_rank=7, indexer=INDEXER)


def context(segments: Any = None) -> Context:
    slots = jnp.arange(LENGTH)
    return Context(jnp.broadcast_to(slots, (BATCH, LENGTH)), segments, jnp.zeros((BATCH, LENGTH), int), slots, None)


def layer(spec: LatentAttention) -> tuple[Any, Any]:
    shell, x = spec.shell(Execution()), normal(0, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, context(), None), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes["params"])
    values = [0.4 * normal(i, *leaf.shape) + (leaf.ndim == 1) for i, leaf in enumerate(leaves)]
    return jax.jit(lambda p, x, c: shell.apply({"params": p}, x, c, None)[:2]), jax.tree.unflatten(tree, values)


def chosen(spec: LatentAttention, p: Any, x: Any, mask: Any) -> Any:
    """bool [B, L, L]: DeepSeek-V3.2 eqs. 1 and 2, one query at a time."""
    f64, index, ix = reference.f64, p["indexer"], spec.indexer
    assert isinstance(ix, Indexer)
    positions = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))
    latent = reference.norm(spec.norm, p["q_norm"], x @ f64(p["wq_down_DQ"]))
    q = reference.rotate(np.einsum("blq,qie->blie", latent, f64(index["wq_QIE"])), positions, ix.rope)
    k = reference.norm(ix.norm, index["k_norm"], x @ f64(index["wk_DE"]))
    k, w = reference.rotate(k, positions, ix.rope), x @ f64(index["weights_DI"])
    found = np.zeros((BATCH, LENGTH, LENGTH), bool)
    for b in range(BATCH):
        for t in range(LENGTH):
            seen = np.flatnonzero(mask[b, t])
            scores = np.maximum(k[b, seen] @ q[b, t].T, 0) @ w[b, t]
            found[b, t, seen[np.argsort(-scores)[: ix.top_k]]] = True
    return found


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("block", [3, 16])
def test_a_query_attends_to_what_scores_best(interleaved: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "QUERY_BLOCK", block)
    spec = replace(SPEC, indexer=replace(INDEXER, rope=replace(ROPE, interleaved=interleaved)))
    run, params = layer(spec)
    x = normal(0, BATCH, LENGTH, WIDTH)
    segments = np.array([[1] * LENGTH, [1] * 5 + [2] * (LENGTH - 5)], np.int32)
    y, _ = run(params, x, context(jnp.asarray(segments)))
    x64, mask = x.astype(np.float64), reference.seen(LENGTH, None, segments)
    only = chosen(spec, params, x64, mask)
    assert only.sum() < mask.sum()
    close(y, attention_over(spec, params, x64, only), LAYER)


def attention_over(spec: LatentAttention, p: Any, x: Any, only: Any) -> Any:
    """Latent attention of each query to the tokens that `only` [B, L, L] has."""
    original = reference.seen
    try:
        reference.seen = lambda *_: only
        positions = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))
        return reference.latent_attention(spec, p, x, positions)
    finally:
        reference.seen = original


def test_a_layer_without_an_indexer_takes_over_an_earlier_choice() -> None:
    lender, borrower = replace(SPEC, indexer=replace(INDEXER, lends=True)), replace(SPEC, indexer=Borrowed(top_k=TOP_K))
    run, params = layer(lender)
    x = normal(0, BATCH, LENGTH, WIDTH)
    y, entries = run(params, x, context())
    without = {name: leaf for name, leaf in params.items() if name != "indexer"}
    shell, lent = borrower.shell(Execution()), context()._replace(lent=entries["lent"])
    close(jax.jit(shell.apply)({"params": without}, x, lent, None)[0], y, LAYER)
    with pytest.raises(ValueError, match="no earlier layer has an indexer that lends"):
        shell.apply({"params": without}, x, context(), None)


def test_few_tokens_are_all_seen() -> None:
    run, params = layer(replace(SPEC, indexer=replace(INDEXER, top_k=LENGTH)))
    plain, x = replace(SPEC, indexer=None).shell(Execution()), normal(0, BATCH, LENGTH, WIDTH)
    without = {name: leaf for name, leaf in params.items() if name != "indexer"}
    close(run(params, x, context())[0], jax.jit(plain.apply)({"params": without}, x, context(), None)[0], LAYER)


def test_no_array_is_as_large_as_all_scores() -> None:
    length = 512
    spec = replace(SPEC, indexer=Indexer(heads=4, dim=6, top_k=8, rope=ROPE))
    shell, x = spec.shell(Execution()), jnp.zeros((1, length, WIDTH))
    slots = jnp.arange(length)
    row = Context(slots[None], None, jnp.zeros((1, length), int), slots, None)
    params = jax.eval_shape(lambda key: shell.init(key, x, row, None), jax.random.key(0))
    assert largest(lambda params, x: shell.apply(params, x, row, None)[0], params, x) < length * length


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"heads": 0}, "Indexer.heads is 0"), ({"top_k": 0}, "Indexer.top_k is 0"), ({"dim": 2}, "cannot exceed dim")],
)
def test_what_cannot_be_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(INDEXER, **fields)


def test_an_indexer_needs_the_query_latent() -> None:
    with pytest.raises(ValueError, match="an indexer reads the query latent"):
        replace(SPEC, q_rank=None)
