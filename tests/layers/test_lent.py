"""Normalised attention equals the loop; a value may be its key; a layer that borrows attends to what another lent."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Decoder, Spec
from archzoo.layers.execution import Execution
from archzoo.layers.lent import NormedAttention
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.norms import RMSNorm
from archzoo.layers.rope import Proportional, Rope
from archzoo.layers.spec import Context

from . import reference
from .conftest import LAYER, close, normal

BATCH, LENGTH, WIDTH = 2, 9, 16
PLAIN = NormedAttention(heads=4, kv_heads=2, head_dim=6, rope=Rope(dim=6), window=4)
SLOTS = jnp.arange(LENGTH)
ROWS = Context(jnp.broadcast_to(SLOTS, (BATCH, LENGTH)), None, jnp.zeros((BATCH, LENGTH), int), SLOTS, pad_B=None)


def layer(spec: NormedAttention, rows: Context = ROWS) -> tuple[Any, Any]:
    shell, x = spec.shell(Execution()), normal(0, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, rows, None), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes["params"])
    values = [0.4 * normal(i, *leaf.shape) + (leaf.ndim == 1) for i, leaf in enumerate(leaves)]
    return jax.jit(lambda p, x, rows=rows: shell.apply({"params": p}, x, rows, None)), jax.tree.unflatten(tree, values)


def expected(spec: NormedAttention, p: Any, x: Any, keys: Any = None, kv_of: Any = None) -> Any:
    f64, positions = reference.f64, np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))
    q = reference.norm(spec.norm, p["q_norm"], np.einsum("bld,dkge->blkge", x, f64(p["wq_DKGE"])))
    q = reference.rotate(q, positions, spec.rope).reshape(BATCH, LENGTH, spec.heads, -1)
    own = p if kv_of is None else kv_of
    raw = np.einsum("bld,dke->blke", x, f64(own["wk_DKE"]))
    v = np.einsum("bld,dke->blke", x, f64(own["wv_DKE"])) if "wv_DKE" in own else raw
    v = reference.rms_norm(v, 1.0, spec.norm.eps)
    k = reference.rotate(reference.norm(spec.norm, own["k_norm"], raw), positions, spec.rope)
    out = reference.attend(q, k, v, reference.seen(LENGTH, spec.window), 1.0, None)
    return np.einsum("blhe,hed->bld", out, f64(p["wo_KGED"]).reshape(spec.heads, spec.head_dim, -1))


@pytest.mark.parametrize(
    "spec", [PLAIN, replace(PLAIN, shared_value=True, window=None)], ids=["window", "key_as_value"]
)
def test_it_equals_the_loop(spec: NormedAttention) -> None:
    run, params = layer(spec)
    x = normal(0, BATCH, LENGTH, WIDTH)
    assert ("wv_DKE" in params) != spec.shared_value
    close(run(params, x)[0], expected(spec, params, x.astype(np.float64)), LAYER)


def test_a_borrower_attends_to_what_was_lent() -> None:
    x = normal(0, BATCH, LENGTH, WIDTH)
    lend, lender = layer(replace(PLAIN, lends="near"))
    rows = ROWS._replace(lent=lend(lender, x)[1]["lent"])
    borrow, params = layer(replace(PLAIN, borrows="near"), rows)
    assert set(params) == {"wq_DKGE", "q_norm", "wo_KGED"}
    y, entries, _ = borrow(params, x)
    close(y, expected(PLAIN, params, x.astype(np.float64), kv_of=lender), LAYER)
    assert entries == {} == replace(PLAIN, borrows="near").cache(1, 8, "float32")


def model(*attention: NormedAttention) -> Spec:
    norm = RMSNorm()
    return Spec(
        vocab=20, width=WIDTH, depth=6, attention=attention, mlp=GatedMLP(ffn=8), block=pre_norm(norm), final_norm=norm
    )


def test_a_run_of_layers_borrows_from_the_nearest_lender() -> None:
    """In a scan the lender of one repeat serves the next one; unrolled it is plainly the layer before."""
    lender, borrower = replace(PLAIN, lends="near"), replace(PLAIN, borrows="near")
    spec = model(lender, replace(PLAIN, window=3), borrower, lender, borrower, lender)
    scanned = replace(spec, attention=(lender, *(borrower, lender) * 2, borrower))
    assert [run.repeats for run in scanned.runs] in ([3], [1, 2, 1])
    for each in (spec, scanned):
        params = each.shapes
        logits = jax.eval_shape(lambda params, each=each: Decoder(each).apply({"params": params}, SLOTS[None]), params)
        assert logits.shape == (1, LENGTH, 20)


def test_nothing_to_borrow_is_an_error() -> None:
    with pytest.raises(ValueError, match="no earlier layer lends keys and values of that name"):
        _ = model(replace(PLAIN, borrows="near"), replace(PLAIN, lends="near")).shapes


def test_proportional_rope_turns_the_first_pairs_alone() -> None:
    rope = Rope(dim=16, theta=100.0, scaling=Proportional(share=0.25, factor=2.0))
    assert rope.scaling is not None
    plain = 100.0 ** -(np.arange(0, 16, 2) / 16)
    turned = rope.scaling.stretch(plain, rope.theta)
    np.testing.assert_allclose(turned, [plain[0] / 2, plain[1] / 2, *[0.0] * 6])
