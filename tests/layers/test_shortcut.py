"""A shortcut layer equals its formula: what the experts add arrives at its end and is seen by nothing in between."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archzoo.layers.accounting import leaves
from archzoo.layers.attention import Attention
from archzoo.layers.decoder import Decoder, Spec, init_cache
from archzoo.layers.execution import Execution
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.norms import RMSNorm
from archzoo.layers.rope import Rope
from archzoo.layers.router import Router
from archzoo.layers.shortcut import Shortcut, ShortcutBlock
from archzoo.layers.spec import Context

from . import reference
from .conftest import LAYER, MODEL, close, normal, params_of, tokens_of

NORM = RMSNorm(eps=1e-3)
FIRST = Attention(heads=2, kv_heads=1, head_dim=6, rope=Rope(dim=6))
SECOND = Attention(heads=3, kv_heads=3, head_dim=4, rope=Rope(dim=4))
SHORTCUT = Shortcut(
    first=GatedMLP(ffn=10),
    attention=SECOND,
    second=GatedMLP(ffn=7),
    experts=MoE(experts=4, ffn=5, router=Router(top_k=2)),
    norm=NORM,
)
BLOCK = ShortcutBlock(before=NORM)
SPEC = Spec(vocab=30, width=12, depth=2, attention=FIRST, mlp=SHORTCUT, block=BLOCK)
LENGTH = 7


def by_hand(p: Any, x: Any) -> Any:
    positions = np.broadcast_to(np.arange(x.shape[1]), x.shape[:2])

    def normed(params: Any, x: Any) -> Any:
        return reference.norm(NORM, params, x)

    m = p["mlp"]
    h = x + reference.attention(FIRST, p["attention"], normed(p["attention_before"], x), positions)
    u = normed(m["first_norm"], h)
    late = reference.moe(SHORTCUT.experts, m["experts"], u)
    h = h + reference.gated_mlp(m["first"], u)
    h = h + reference.attention(SECOND, m["attention"], normed(m["attention_norm"], h), positions)
    return h + reference.gated_mlp(m["second"], normed(m["second_norm"], h)) + late


def test_a_layer_equals_the_formula() -> None:
    params = jax.tree.map(lambda leaf: leaf[1], params_of(SPEC)["run_0"]["layer_0"])
    x = normal(0, 2, LENGTH, 12)
    positions = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), (2, LENGTH))
    context = Context(positions, None, positions, positions[0], None)
    shell = BLOCK.shell(Execution(), FIRST, SHORTCUT)
    y, entries, aux = jax.jit(lambda p, x: shell.apply({"params": p}, x, context, None))(params, x)
    close(y, by_hand(params, x.astype(np.float64)), LAYER)
    assert set(entries["mlp"]) == {"k_BKSE", "v_BKSE"}
    assert np.sum(aux["mlp"]["experts"]["load_X"]) == 2 * LENGTH * 2


def test_decoding_equals_the_whole() -> None:
    params, tokens = params_of(SPEC), tokens_of(SPEC, 2, LENGTH)
    model = Decoder(SPEC)
    whole = jax.jit(model.apply)({"params": params}, tokens)
    step = jax.jit(lambda params, token, cache: model.apply({"params": params}, token, cache, method="extend"))
    cache, found = init_cache(SPEC, 2, LENGTH, "float32"), []
    for t in range(LENGTH):
        logits, cache = step(params, tokens[:, t : t + 1], cache)
        found.append(logits)
    close(jnp.concatenate(found, axis=1), whole, MODEL)


def test_every_parameter_knows_its_axes_and_both_attentions_are_counted() -> None:
    assert all(None not in leaf.axes for leaf in leaves(SPEC))
    parts = (SHORTCUT.first, SHORTCUT.second, SHORTCUT.experts)
    assert SHORTCUT.flops(LENGTH) == SECOND.flops(LENGTH) + sum(part.flops(LENGTH) for part in parts)
    assert SHORTCUT.cache(2, 5, "float32").keys() == SECOND.cache(2, 5, "float32").keys()
    assert Spec.from_json(SPEC.to_json()) == SPEC
