"""The target of an execution, and nothing else, says whether a model runs through the kernels of a GPU."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from archzoo.layers.decoder import Decoder, param_shapes
from archzoo.layers.execution import Execution

from .conftest import SPECS, equations

KERNELS = {"full": {"flash_forward"}, "ring": {"flash_forward"}, "latent": {"flash_forward", "grouped_product"}}


def kernels(name: str, target: str) -> Counter[str]:
    """The kernels in a model's forward pass."""
    model = Decoder(SPECS[name], Execution(target=target))
    tokens = jax.ShapeDtypeStruct((2, 9), jnp.int32)
    jaxpr: Any = jax.make_jaxpr(lambda p, t: model.apply({"params": p}, t))(param_shapes(SPECS[name]), tokens)
    calls = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "pallas_call"]
    return Counter(call.params["name"] for call in calls)


@pytest.mark.parametrize("name", KERNELS)
def test_a_gpu_runs_kernels(name: str) -> None:
    assert set(kernels(name, "gpu")) == KERNELS[name]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("target", ["auto", "cpu", "neuron"])
def test_other_targets_run_none(name: str, target: str) -> None:
    assert not kernels(name, target)
