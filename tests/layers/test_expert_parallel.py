"""On any mesh that spreads the experts, outputs, gradients, statistics and drops are one device's, and no device sees
all experts.

On eight devices of a CPU, which take a process of their own.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from archzoo.layers.bounded import Clamped
from archzoo.layers.execution import Execution
from archzoo.layers.expert import GatedExpert
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.router import Router
from archzoo.layers.spec import Context
from archzoo.sharding.rules import Rules, make_mesh

BATCH, LENGTH, WIDTH, EXPERTS, FFN = 8, 10, 12, 16, 6
MESHES: tuple[dict[str, int], ...] = (
    {"expert": 8},
    {"fsdp": 2, "expert": 4},
    {"data": 2, "expert": 2, "tensor": 2},
    {"expert": 4, "sequence": 2},
)
ROUTERS = {
    "softmax": Router(top_k=3),
    "sigmoid": Router(top_k=3, score="sigmoid", bias=True, scale=2.5),
    "clamped": Router(top_k=3, logit_bias=True),
}
BIASED = GatedExpert(activation=Clamped(limit=0.8), bias=True)
MIXTURES = {
    "softmax": MoE(experts=EXPERTS, ffn=FFN, router=ROUTERS["softmax"], identities=3),
    "sigmoid": MoE(experts=EXPERTS, ffn=FFN, router=ROUTERS["sigmoid"], shared=GatedMLP(ffn=7)),
    "clamped": MoE(experts=EXPERTS, ffn=FFN, router=ROUTERS["clamped"], expert=BIASED),
}
TOLERANCE = 1e-5


def rows() -> Context:
    """Rows of which two begin with padding."""
    slots = jnp.arange(LENGTH)
    return Context(
        slots - jnp.zeros((BATCH, 1), int).at[1:3].set(4), None, jnp.zeros((BATCH, LENGTH), int), slots, None
    )


def params_of(spec: MoE) -> Any:
    shell, x = spec.shell(Execution()), jnp.zeros((BATCH, LENGTH, WIDTH))
    shapes = jax.eval_shape(lambda key: shell.init(key, x, rows(), None), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    made = [0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, made)


def both_ways(spec: MoE, execution: Execution, params: Any, x: Any, dy: Any) -> Any:
    """Outputs, statistics, and the gradients of parameters and tokens."""
    shell = spec.shell(execution)

    def weighed(params: Any, x: Any) -> Any:
        y, _, aux = shell.apply({"params": params}, x, rows(), None)
        return jnp.sum(y * dy) + jnp.sum(aux["sequence"]) + jnp.sum(aux["z"]), (y, aux)

    (_, told), gradients = jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True)(params, x)
    return told, gradients


def apart(one: Any, many: Any) -> float:
    """The largest difference, relative to the largest number of the array."""
    gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / (jnp.max(jnp.abs(a)) + 1e-6), one, many)
    return float(max(jax.tree.leaves(jax.device_get(gaps))))


def measured() -> dict[str, Any]:
    """By way, mixture and mesh: how far from one device, what was dropped, and the shapes of the compiled program."""
    x, dy = (jax.random.normal(jax.random.key(seed), (BATCH, LENGTH, WIDTH)) for seed in (2, 3))
    found: dict[str, Any] = {}
    for way, names in {"grouped": tuple(MIXTURES), "capacity": ("sigmoid",)}.items():
        for name in names:
            spec, params = MIXTURES[name], params_of(MIXTURES[name])
            inputs = [params]
            if name == "sigmoid":  # and all tokens to the two experts of one device
                one_device = jnp.zeros(EXPERTS).at[4:6].set(100.0)
                inputs.append(params | {"router": params["router"] | {"bias_X": one_device}})
            execution = partial(Execution, dispatch=way, capacity=1.0)
            alone = jax.jit(partial(both_ways, spec, execution()))
            expected = [jax.device_get(alone(given, x, dy)) for given in inputs]
            for sizes in MESHES:
                mesh = make_mesh(**sizes)
                with jax.set_mesh(mesh):
                    spread = jax.jit(partial(both_ways, spec, execution(rules=Rules())))
                    compiled = spread.lower(params, x, dy).compile()
                    got = [jax.device_get(compiled(given, x, dy)) for given in inputs]
                found[f"{way} {name} " + ",".join(f"{axis}={size}" for axis, size in sizes.items())] = {
                    "apart": max(apart(a, b) for a, b in zip(expected, got, strict=True)),
                    "dropped": [float(told[1]["dropped"]) for told, _ in expected],
                    "dropped_here": [float(told[1]["dropped"]) for told, _ in got],
                    "devices": sizes["expert"],
                    "whole": whole(compiled.as_text()),
                    "exchanges": "all-to-all" in compiled.as_text(),
                }
    return found


def whole(text: str) -> list[str]:
    """The arrays of a program that hold the matrices of all experts, in any order of their axes."""
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text)}
    matrices = (sorted((EXPERTS, FFN, WIDTH)), sorted((EXPERTS, FFN // 2, WIDTH)))
    return [str(shape) for shape in shapes if sorted(n for n in shape if n > 1) in matrices]


@pytest.fixture(scope="module")
def found(on_devices: Callable[..., str]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(on_devices(8, __file__))
    return told


def test_every_mesh_equals_one_device(found: dict[str, Any]) -> None:
    """But for capacity where a row is cut: each part has slots of its own."""
    cut = {name for name in found if name.startswith("capacity") and "sequence" in name}
    assert len(found) - len(cut) == 15
    for name in found.keys() - cut:
        assert found[name]["apart"] < TOLERANCE, (name, found[name])


def test_drops_are_counted_on_all_devices(found: dict[str, Any]) -> None:
    for name, told in found.items():
        if name.startswith("grouped"):
            assert told["dropped_here"] == [0.0] * len(told["dropped_here"])
        elif "sequence" not in name:
            assert told["dropped_here"] == told["dropped"]
            assert min(told["dropped"]) > 0


def test_tokens_travel_and_experts_do_not(found: dict[str, Any]) -> None:
    for name, told in found.items():
        assert told["exchanges"], name
        assert told["whole"] == [], name


H100 = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")


@pytest.mark.parametrize(
    ("target", "platform", "device", "ragged"), [("cpu", "cpu", None, False), ("gpu", "cuda", H100, True)]
)
def test_both_exchanges_lower(target: str, platform: str, device: Any, ragged: bool) -> None:
    """For a mesh of devices that need not be here."""
    spec, params = MIXTURES["clamped"], params_of(MIXTURES["clamped"])
    x = jnp.zeros((BATCH, LENGTH, WIDTH))
    run = jax.jit(partial(both_ways, spec, Execution(rules=Rules(), target=target)))
    mesh = AbstractMesh((8,), ("expert",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        text = run.trace(params, x, x).lower(lowering_platforms=(platform,)).as_text()
    assert ("ragged_all_to_all" in text) == ragged
    assert "stablehlo.all_to_all" in text


if __name__ == "__main__":
    print(json.dumps(measured()))
