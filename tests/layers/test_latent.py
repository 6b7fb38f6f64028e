"""Latent attention equals DeepSeek's equations, expanded or absorbed, and keeps only latents."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.execution import Execution
from archzoo.layers.latent import LatentAttention, absorbed, expanded
from archzoo.layers.rope import Linear, Rope, Yarn
from archzoo.layers.spec import Context

from . import reference
from .conftest import GRADIENT, LAYER, close, largest, normal

PLAIN = LatentAttention(heads=3, nope_dim=4, value_dim=6, kv_rank=5, rope=Rope(dim=4))
COMPRESSED = LatentAttention(heads=3, nope_dim=4, value_dim=6, kv_rank=5, rope=Rope(dim=4, interleaved=True), q_rank=7)
BATCH, LENGTH, WIDTH = 2, 9, 16


def context(pad_B: Any = None, first: int = 0, length: int = LENGTH) -> Context:
    """Tokens from `first` on; with a cache where the padding of each row is given."""
    slots = np.arange(first, first + length, dtype=np.int32)
    positions = slots[None] - (np.zeros((BATCH, 1), np.int32) if pad_B is None else pad_B[:, None])
    return Context(jnp.asarray(positions), None, jnp.zeros((BATCH, length), int), jnp.asarray(slots), pad_B)


def layer(spec: LatentAttention) -> tuple[Any, Any]:
    """The module, and random parameters."""
    shell, x = spec.shell(Execution()), normal(0, BATCH, LENGTH, WIDTH)
    shapes = jax.eval_shape(lambda key: shell.init(key, x, context(), None), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes["params"])
    return shell, jax.tree.unflatten(
        tree, [0.4 * normal(i, *leaf.shape) + (leaf.ndim == 1) for i, leaf in enumerate(leaves)]
    )


@pytest.mark.parametrize("spec", [PLAIN, COMPRESSED], ids=["plain", "compressed_queries"])
def test_expanded_equals_the_equations(spec: LatentAttention) -> None:
    shell, params = layer(spec)
    x = normal(0, BATCH, LENGTH, WIDTH)
    y, entries, _ = jax.jit(lambda params, x: shell.apply({"params": params}, x, context(), None))(params, x)
    positions = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))
    close(y, reference.latent_attention(spec, params, x.astype(np.float64), positions), LAYER)
    assert entries["latent_BST"].shape == (BATCH, LENGTH, spec.kv_rank + spec.rope.dim)


@pytest.mark.parametrize("spec", [PLAIN, COMPRESSED], ids=["plain", "compressed_queries"])
def test_absorbed_equals_expanded(spec: LatentAttention) -> None:
    shell, params = layer(spec)
    x, split = normal(0, BATCH, LENGTH, WIDTH), 4
    no_pad = jnp.zeros(BATCH, jnp.int32)

    @jax.jit
    def run(params: Any, x: Any) -> Any:
        whole, entries, _ = shell.apply({"params": params}, x, context(), None)
        held = {"latent_BST": entries["latent_BST"][:, :split]}
        later = context(no_pad, split, LENGTH - split)
        return whole[:, split:], shell.apply({"params": params}, x[:, split:], later, held)[0]

    whole, later = run(params, x)
    close(later, whole, LAYER)


def test_the_two_forms_have_equal_gradients() -> None:
    heads, nope, rotated, rank, value = 3, 4, 2, 5, 6
    q, latent = normal(0, 1, LENGTH, heads, nope + rotated), normal(1, 1, LENGTH, rank + rotated)
    wk, wv = normal(2, rank, heads, nope), normal(3, rank, heads, value)
    slots, weight = jnp.arange(LENGTH), normal(4, 1, LENGTH, heads, value)
    row = context()._replace(positions_BL=slots[None], tokens_BL=slots[None])

    def one(q: Any, latent: Any, wk: Any, wv: Any) -> Any:
        return jnp.sum(expanded(q, latent, wk, wv, slots[None], row, 0.4) * weight)

    def other(q: Any, latent: Any, wk: Any, wv: Any) -> Any:
        return jnp.sum(absorbed(q, [(latent, slots[None])], wk, wv, slots, 0.4) * weight)

    one_g, other_g = (jax.jit(jax.grad(f, argnums=(0, 1, 2, 3)))(q, latent, wk, wv) for f in (one, other))
    close(other_g, one_g, GRADIENT)


def test_decoding_never_makes_the_keys_and_values_of_the_past() -> None:
    spec, slots = LatentAttention(heads=8, nope_dim=16, value_dim=16, kv_rank=8, rope=Rope(dim=4)), 512
    shell = spec.shell(Execution())
    x, held = jnp.zeros((1, 1, WIDTH)), spec.cache(1, slots, jnp.float32)
    now = Context(jnp.full((1, 1), slots), None, jnp.zeros((1, 1), int), jnp.full((1,), slots), jnp.zeros(1, int))
    params = jax.eval_shape(lambda key: shell.init(key, x, now, None), jax.random.key(0))
    run = lambda params, held: shell.apply(params, x, now, held)[0]  # noqa: E731
    assert largest(run, params, held) == slots * (spec.kv_rank + spec.rope.dim) < slots * 8 * 16


def test_the_cache_holds_one_latent_and_one_rotated_key_a_token() -> None:
    entries = LatentAttention(heads=128, nope_dim=128, value_dim=128, kv_rank=512, rope=Rope(dim=64)).cache(
        3, 1000, jnp.bfloat16
    )
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in entries.items()} == {
        "latent_BST": ((3, 1000, 576), jnp.bfloat16)
    }


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        (None, 1.0),
        (Linear(factor=40.0), 1.0),
        (Yarn(factor=40.0, original_length=4096), 1.0),
        (Yarn(factor=40.0, original_length=4096, mscale=1.0, mscale_all_dim=1.0), (0.1 * math.log(40) + 1) ** 2),
        (Yarn(factor=40.0, original_length=4096, mscale_all_dim=0.707), (0.0707 * math.log(40) + 1) ** 2),
    ],
)
def test_yarn_with_mscale_all_dim_scales_the_scores_by_its_square(scaling: Any, factor: float) -> None:
    spec = LatentAttention(heads=2, nope_dim=128, value_dim=128, kv_rank=4, rope=Rope(dim=64, scaling=scaling))
    assert spec.scale == pytest.approx(192**-0.5 * factor)


def test_the_scale_is_what_the_scores_are_multiplied_by() -> None:
    """A magnitude of 2 multiplies the scores by 4, as four times the query does; at position 0 nothing turns."""
    yarn = Yarn(factor=math.e**10, original_length=4096, mscale=1.0, mscale_all_dim=1.0)  # magnitude 2
    stretched = LatentAttention(heads=3, nope_dim=4, value_dim=6, kv_rank=5, rope=Rope(dim=4, scaling=yarn))
    shell, params = layer(stretched)
    still = context()._replace(positions_BL=jnp.zeros((BATCH, LENGTH), jnp.int32))
    x = normal(0, BATCH, LENGTH, WIDTH)
    plain, louder = PLAIN.shell(Execution()), params | {"wq_DHP": 4 * params["wq_DHP"]}
    y, expected = (
        jax.jit(module.apply)({"params": p}, x, still, None)[0] for module, p in ((shell, params), (plain, louder))
    )
    close(y, expected, LAYER)
