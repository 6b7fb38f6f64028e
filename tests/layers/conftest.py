"""What the tests of layers share: tolerances, four small specs that between them use every layer, compiled calls, and
a way to look at the size of everything a function computes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from archzoo.layers.attention import Attention, Scores
from archzoo.layers.block import inner_post_norm, pre_norm, sandwich_norm
from archzoo.layers.decoder import Decoder, Spec, param_shapes
from archzoo.layers.execution import Execution
from archzoo.layers.latent import LatentAttention
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.norms import QKNorm, RMSNorm
from archzoo.layers.rope import Rope
from archzoo.layers.router import Groups, Router

FLOAT32 = Execution()

# The largest error allowed, relative to the largest value of the array compared.
LAYER = 3e-6  # one layer, float32 against float64
MODEL = 2e-5  # a whole model, or two ways to compute one in float32
GRADIENT = 2e-5  # gradients, and float64 finite differences
HALF = 2.0**-8  # one rounding to bfloat16
BFLOAT16 = 5e-2  # a whole model in bfloat16


def close(actual: Any, expected: Any, tolerance: float) -> None:
    """Two arrays or trees of them have the same shapes, and differ by at most this much of each array's largest
    value.
    """
    assert str(jax.tree.structure(actual)) == str(jax.tree.structure(expected))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(float(np.max(np.abs(e))), 1e-30))


def normal(seed: int, *shape: int) -> Any:
    """float32 standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- specs -----------------------------------------------------------------------------------------------------------

FULL = Attention(heads=4, kv_heads=2, head_dim=8, rope=Rope(dim=8), qk_norm=QKNorm())
LOCAL = Attention(
    heads=4,
    kv_heads=1,
    head_dim=8,
    rope=Rope(dim=4, interleaved=True),
    window=3,
    scores=Scores(softcap=5.0),
    bias="qkvo",
)
LATENT = LatentAttention(heads=3, nope_dim=4, value_dim=6, kv_rank=5, rope=Rope(dim=4), q_rank=7)
DENSE = GatedMLP(ffn=24)
MOE = MoE(
    experts=6,
    ffn=8,
    router=Router(top_k=2, score="sigmoid", groups=Groups(count=3, kept=2), bias=True, scale=1.5),
    shared=GatedMLP(ffn=8),
)

SPECS = {
    "full": Spec(vocab=40, width=16, depth=2, attention=FULL, mlp=DENSE, block=pre_norm(RMSNorm())),
    "ring": Spec(
        vocab=40,
        width=16,
        depth=2,
        attention=LOCAL,
        mlp=DENSE,
        block=sandwich_norm(RMSNorm(zero_centred=True)),
        final_norm=RMSNorm(zero_centred=True),
        tied=True,
        embedding_scale=4.0,
        logit_scale=0.5,
        logit_softcap=10.0,
    ),
    "latent": Spec(vocab=40, width=16, depth=2, attention=LATENT, mlp=MOE, block=pre_norm(RMSNorm())),
    "mixed": Spec(
        vocab=40,
        width=16,
        depth=3,
        attention=(LOCAL, FULL, LATENT),
        mlp=(DENSE, GatedMLP(ffn=12), ...),
        block=inner_post_norm(RMSNorm()),
    ),
}


def params_of(spec: Spec, seed: int = 0) -> Any:
    """Random parameters, also where the model starts at zero or one."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        size = 1.0 if name == "embed_VD" else 0.3
        values = rng.standard_normal(leaf.shape) * size + (1.0 if name.startswith("scale_") else 0.0)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(spec))


def tokens_of(spec: Spec, batch: int, length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, spec.vocab, (batch, length)).astype(np.int32)


# --- compiled once for all tests -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly() -> Iterator[None]:
    """What is compiled here runs a few times on a few numbers: optimising it costs more than it saves."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@partial(jax.jit, static_argnames=("spec", "execution"))
def forward(
    spec: Spec, params: Any, tokens: Any, segments: Any = None, positions: Any = None, execution: Execution = FLOAT32
) -> Any:
    return Decoder(spec, execution).apply({"params": params}, tokens, segments, positions)


@partial(jax.jit, static_argnames=("spec", "empty"))
def extend(spec: Spec, params: Any, tokens: Any, cache: Any, empty: bool = False) -> Any:
    return Decoder(spec).apply({"params": params}, tokens, cache, empty, method="extend")


# --- looking inside --------------------------------------------------------------------------------------------------


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: isinstance(v, (Jaxpr, ClosedJaxpr))
        ):
            if isinstance(value, ClosedJaxpr):
                yield from equations(value.jaxpr)
            elif isinstance(value, Jaxpr):
                yield from equations(value)


def largest(function: Callable[..., Any], *arguments: Any) -> int:
    """Elements of the largest float array that the function makes, at any depth; arguments may be shapes."""
    made = (v.aval for e in equations(jax.make_jaxpr(function)(*arguments).jaxpr) for v in e.outvars)
    return max(int(a.size) for a in made if jnp.issubdtype(a.dtype, jnp.floating))
