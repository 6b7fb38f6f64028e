"""Layers of devices that share a sequence are one device's, in outputs and gradients: attention in a ring, by
neighbours and by heads, and memories that are handed on. No device holds the keys of the whole sequence.

On eight devices of a CPU, which take a process of their own.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from archzoo.layers import attention_gpu, delta, mamba2, ring
from archzoo.layers.attention import Attention, Scores
from archzoo.layers.delta import GatedDelta
from archzoo.layers.execution import Execution
from archzoo.layers.kda import KimiDelta
from archzoo.layers.latent import LatentAttention
from archzoo.layers.mamba2 import Mamba2
from archzoo.layers.products import Keys, Queries, Rule
from archzoo.layers.rope import Rope
from archzoo.layers.spec import Context
from archzoo.sharding.hlo import collectives
from archzoo.sharding.rules import RULES, make_mesh

BATCH, LENGTH, WIDTH = 2, 64, 12
TOLERANCE = 1e-5
SINKS = Scores(sinks=True, softcap=2.0)

LAYERS: dict[str, Any] = {
    "full": Attention(heads=4, kv_heads=4, head_dim=6, rope=Rope(dim=6)),
    "groups and sinks": Attention(heads=6, kv_heads=2, head_dim=6, rope=Rope(dim=6), scores=SINKS),
    "window": Attention(heads=4, kv_heads=2, head_dim=6, rope=Rope(dim=6), window=3, scores=SINKS),
    "long window": Attention(heads=4, kv_heads=2, head_dim=6, window=15, scores=Scores(softcap=2.0)),
    "longer window": Attention(heads=4, kv_heads=2, head_dim=6, window=50),
    "by heads": Attention(heads=8, kv_heads=4, head_dim=6, scores=SINKS),
    "latent": LatentAttention(heads=4, nope_dim=6, value_dim=5, kv_rank=9, q_rank=7, rope=Rope(dim=4)),
    "delta": GatedDelta(key_heads=2, value_heads=4, key_dim=6, value_dim=5),
    "channels": KimiDelta(heads=4, head_dim=6, rank=5),
    "mamba2": Mamba2(heads=4, head_dim=6, groups=2, state_dim=5),
}
MESHES: dict[str, dict[str, int]] = {
    "eight": {"sequence": 8},
    "two": {"data": 2, "tensor": 2, "sequence": 2},
    "odd": {"fsdp": 2, "sequence": 4},
    "four": {"fsdp": 2, "sequence": 4},
    "kernels": {"fsdp": 2, "sequence": 4},
}
"""odd: with a length of which each device has an odd part.  kernels: with those for GPUs, interpreted."""
CASES = (
    ("eight", "full"),
    ("eight", "window"),
    ("eight", "long window"),
    ("eight", "latent"),
    ("two", "groups and sinks"),
    ("four", "by heads"),
    ("eight", "delta"),
)
MORE = (
    ("eight", "groups and sinks"),
    ("eight", "longer window"),
    ("two", "window"),
    ("two", "latent"),
    ("odd", "groups and sinks"),
    ("odd", "long window"),
    ("two", "delta"),
    ("odd", "channels"),
    ("eight", "mamba2"),
    ("two", "mamba2"),
    ("kernels", "full"),
    ("kernels", "long window"),
    ("kernels", "latent"),
)


def rows(length: int) -> Context:
    """Rows of packed documents, some as long as several devices' parts; the first ends with padding."""
    at = jnp.arange(length)
    cuts = jnp.array([[5, 7, 40], [11, 30, 31]])
    segments = 1 + jnp.sum(at[None, :, None] >= cuts[:, None], axis=-1)
    segments = segments.at[0, -3:].set(0)
    positions = jnp.broadcast_to(at, (BATCH, length))
    return Context(positions, segments, jnp.zeros((BATCH, length), int), at, None)


def params_of(spec: Any, x: Any, context: Context) -> Any:
    shell = spec.shell(Execution())
    shapes = jax.eval_shape(lambda key: shell.init(key, x, context, None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    made = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, made)


def both_ways(spec: Any, execution: Execution, params: Any, x: Any, dy: Any, segments: Any) -> Any:
    """Outputs, and the gradients of parameters and tokens."""
    shell, context = spec.shell(execution), rows(x.shape[1])

    def weighed(params: Any, x: Any, segments: Any) -> Any:
        y, _, _ = shell.apply({"params": params}, x, context._replace(segments_BL=segments), None)
        y = y if segments is None else y * (segments > 0)[..., None]
        return jnp.sum(y * dy), y

    (_, y), gradients = jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True)(params, x, segments)
    return y, gradients


def apart(one: Any, many: Any) -> float:
    """The largest difference, relative to the largest number of the array."""
    gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / (jnp.max(jnp.abs(a)) + 1e-6), one, many)
    return float(max(jax.tree.leaves(jax.device_get(gaps))))


def measured(cases: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """By mesh and layer: how far from one device, how often devices pass blocks on, and the shapes of the program."""
    found: dict[str, Any] = {}
    for mesh_name, name in cases:
        spec, sizes = LAYERS[name], MESHES[mesh_name]
        length = 60 if mesh_name == "odd" else LENGTH
        x, dy = (jax.random.normal(jax.random.key(seed), (BATCH, length, WIDTH)) for seed in (2, 3))
        context = rows(length)
        params = params_of(spec, x, context)
        packed = mesh_name != "two"
        given = params, x, dy, context.segments_BL if packed else None
        alone = jax.jit(partial(both_ways, spec, Execution())).lower(*given).compile()
        expected = jax.device_get(alone(*given))
        target = "gpu" if mesh_name == "kernels" else "auto"
        execution = Execution(rules=RULES["heads" if name == "by heads" else "default"], target=target)
        with prepared(), jax.set_mesh(make_mesh(**sizes)):
            compiled = jax.jit(partial(both_ways, spec, execution)).lower(*given).compile()
            got = jax.device_get(compiled(*given))
        text = compiled.as_text()
        told = collectives(text, [0] * 8)
        moved = [c for c in told if c.kind == "collective-permute"]
        found[f"{mesh_name} {name}"] = {
            "apart": apart(expected, got),
            "passes": sum(c.count for c in moved),
            "bytes": sum(c.count * c.bytes for c in moved),
            "exchanges": sum(c.count for c in told if c.kind == "all-to-all"),
            "whole": whole(text, length),
            "whole_alone": whole(alone.as_text(), length),
        }
    return found


@contextmanager
def prepared() -> Iterator[None]:
    """Kernels run as plain JAX, and a device's tokens are several chunks of a memory's."""
    flash = partial(attention_gpu.flash_attention, interpret=True)
    met = partial(ring.in_kernels, interpret=True)
    with ExitStack() as stack:
        for module, name, value in (
            (attention_gpu, "flash_attention", flash),
            (ring, "in_kernels", met),
            (delta, "CHUNK", 4),
            (delta, "CHANNEL_CHUNK", 4),
            (mamba2, "in_chunks", partial(mamba2.in_chunks, chunk=4)),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield


def whole(text: str, length: int) -> list[str]:
    """The arrays of a program with more numbers than positions of the whole length, that have it as an axis."""
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\bf32\[([\d,]+)\]", text)}
    return [str(shape) for shape in shapes if length in shape and math.prod(shape) > BATCH * length * WIDTH]


def of_a_process(on_devices: Callable[..., str], *arguments: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(on_devices(8, __file__, *arguments))
    return told


@pytest.fixture(scope="module")
def found(on_devices: Callable[..., str]) -> dict[str, Any]:
    return of_a_process(on_devices)


def test_devices_that_share_a_sequence_are_one_device(found: dict[str, Any]) -> None:
    assert len(found) == len(CASES)
    for name, told in found.items():
        assert told["apart"] < TOLERANCE, (name, told)


@pytest.mark.slow
def test_more_layers_and_kernels_are_one_device(on_devices: Callable[..., str]) -> None:
    found = of_a_process(on_devices, "more")
    assert len(found) == len(MORE)
    for name, told in found.items():
        assert told["apart"] < TOLERANCE, (name, told)
        assert told["whole"] == [] or "kernels" in name, (name, told)


def test_no_device_holds_the_keys_of_the_whole_sequence(found: dict[str, Any]) -> None:
    for name, told in found.items():
        if "heads" not in name:
            assert told["whole"] == [], name
    assert all(found[name]["whole_alone"] for name in ("eight full", "two groups and sinks", "eight latent"))


def test_a_window_visits_only_the_neighbours_it_reaches(found: dict[str, Any]) -> None:
    """Keys, values, places and documents come once from each, and two gradients go back. In the ring, seven blocks of
    these four come, twice, and two gradients move on eight times; what is left deals halves out.
    """
    passes = {name: told["passes"] for name, told in found.items()}
    assert passes["eight window"] == 6
    assert passes["eight long window"] == 2 * 6
    assert 7 * 4 * 2 + 8 * 2 <= passes["eight full"] <= 7 * 4 * 2 + 8 * 2 + 20
    assert found["eight window"]["bytes"] < found["eight full"]["bytes"] / 20


def test_latents_travel_where_they_are_less(found: dict[str, Any]) -> None:
    """One array and one gradient of it, not two."""
    assert found["eight latent"]["passes"] < found["eight full"]["passes"]


def test_heads_change_places_with_the_sequence_where_they_divide(found: dict[str, Any]) -> None:
    assert found["four by heads"]["exchanges"] > 0
    assert found["four by heads"]["passes"] == 0
    assert found["eight full"]["exchanges"] == 0


@pytest.mark.parametrize("in_order", [False, True])
def test_a_block_of_queries_at_a_time_is_all_of_them(monkeypatch: pytest.MonkeyPatch, in_order: bool) -> None:
    q, k, v, dout = (
        jax.random.normal(jax.random.key(i), (2, 20, 2, *group, 4)) for i, group in enumerate(((3,), (), (), (3,)))
    )
    context = rows(20)
    marks = jnp.broadcast_to(context.slots_L, (2, 20)), context.segments_BL
    queries, keys, rule = Queries(q, *marks), Keys(k, v, *marks), Rule(0.5, 6, 2.0)
    found = []
    for size in (1024, 3):
        monkeypatch.setattr(ring, "QUERY_BLOCK", size)
        part = jax.jit(partial(ring.in_products, rule=rule, in_order=in_order))(queries, keys)
        told = part.lse_BLKG1, jnp.sum(part.out_BLKGU * dout, axis=-1, keepdims=True), dout
        pulled = jax.jit(partial(ring.back_in_products, rule=rule, in_order=in_order))
        found.append((part, pulled(ring.Readers(*queries, *told), keys)))
    assert apart(found[0], found[1]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "long window", "latent"])
def test_on_gpus_they_attend_in_kernels(name: str) -> None:
    """For a mesh of devices that need not be here."""
    device = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    mesh = AbstractMesh((8,), ("sequence",), axis_types=(AxisType.Auto,), abstract_device=device)
    x, spec, context = jnp.zeros((BATCH, 2048, WIDTH)), LAYERS[name], rows(2048)
    run = partial(both_ways, spec, Execution(rules=RULES["default"], target="gpu"))
    params = params_of(spec, x[:, :64], rows(64))
    with jax.sharding.use_abstract_mesh(mesh):
        text = jax.jit(run).trace(params, x, x, context.segments_BL).lower(lowering_platforms=("cuda",)).as_text()
    assert "collective_permute" in text
    assert text.count("triton") >= 3
    assert "2048x2048" not in text


if __name__ == "__main__":
    print(json.dumps(measured(MORE if "more" in sys.argv else CASES)))
