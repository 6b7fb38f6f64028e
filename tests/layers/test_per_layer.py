"""Per-layer inputs are what the equation says, and each layer adds its own to the residual."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archzoo.layers.decoder import Decoder, Spec
from archzoo.layers.execution import Execution
from archzoo.layers.lent import NormedAttention
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.norms import RMSNorm
from archzoo.layers.per_layer import PerLayer, ScaledBlock
from archzoo.layers.rope import Rope

from . import reference
from .conftest import LAYER, MODEL, close, normal

VOCAB, WIDTH, DEPTH, DIM, LENGTH = 20, 12, 5, 4, 7
PER_LAYER = PerLayer(vocab=VOCAB, dim=DIM)
LOCAL = NormedAttention(heads=2, kv_heads=1, head_dim=6, rope=Rope(dim=6), window=3)
GLOBAL = NormedAttention(heads=2, kv_heads=1, head_dim=8, rope=Rope(dim=8))
SPEC = Spec(
    vocab=VOCAB,
    width=WIDTH,
    depth=DEPTH,
    attention=(LOCAL, LOCAL, GLOBAL),
    mlp=GatedMLP(ffn=10),
    block=ScaledBlock(norm=RMSNorm(), dim=DIM, activation="silu"),
    tied=True,
    per_layer=PER_LAYER,
)


def inputs(p: Any, x: Any, tokens: Any) -> Any:
    """[B, L, N, P]."""
    told = reference.f64(p["embed_VNP"])[tokens] * DIM**0.5
    seen = np.einsum("bld,dnp->blnp", x, reference.f64(p["w_DNP"])) * WIDTH**-0.5
    return (told + reference.norm(PER_LAYER.norm, p["norm"], seen)) / 2**0.5


def random_like(shapes: Any) -> Any:
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.4 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def test_what_a_layer_reads_is_the_equation() -> None:
    shell, x, tokens = PER_LAYER.shell(Execution(), DEPTH), normal(0, 2, LENGTH, WIDTH), np.arange(14).reshape(2, 7)
    params = random_like(jax.eval_shape(lambda key: shell.init(key, x, tokens), jax.random.key(0))["params"])
    own_NBLP = jax.jit(shell.apply)({"params": params}, x, tokens)
    close(own_NBLP, np.moveaxis(inputs(params, x.astype(np.float64), tokens), 2, 0), LAYER)


def test_every_layer_of_a_scan_reads_its_own() -> None:
    """With attention and MLP silenced, the model is the sum of what the layers read, each scaled."""
    params = random_like(SPEC.shapes)
    for run in range(len(SPEC.runs)):
        for layer in params[f"run_{run}"].values():
            layer["attention"]["wo_KGED"] = 0 * layer["attention"]["wo_KGED"]
            layer["mlp"]["w_down_FD"] = 0 * layer["mlp"]["w_down_FD"]
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
    hidden, _ = jax.jit(lambda p, t: Decoder(SPEC).apply({"params": p}, t, method="hidden"))(
        params, jnp.asarray(tokens)
    )
    x = reference.f64(params["embed_VD"])[tokens]
    own = inputs(params["per_layer"], x, tokens)
    for depth in range(DEPTH):
        run = next(i for i, r in enumerate(SPEC.runs) if depth < r.start + r.repeats * len(r.period))
        repeat, place = divmod(depth - SPEC.runs[run].start, len(SPEC.runs[run].period))
        p = jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat], params[f"run_{run}"][f"layer_{place}"])
        gate = reference.silu(x @ reference.f64(p["own_gate_DP"])) * own[:, :, depth]
        x = x + reference.norm(RMSNorm(), p["own_after"], gate @ reference.f64(p["own_out_PD"]))
        x = x * reference.f64(p["scale_1"])
    close(hidden, reference.norm(SPEC.final_norm, params["final_norm"], x), MODEL)


def test_the_tables_are_looked_up_and_cost_no_flops() -> None:
    wide = SPEC.replace(**{"per_layer.vocab": 10 * VOCAB})
    assert wide.param_count() > SPEC.param_count()
    assert wide.flops_per_token(8) == SPEC.flops_per_token(8)
