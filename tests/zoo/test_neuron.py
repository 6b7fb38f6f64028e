"""Every family's initialisation, training step, prefill and decoding pass the Neuron check, by the execution's target
alone.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from archzoo.layers.execution import Execution
from archzoo.sharding import check
from archzoo.train.programs import on_no_devices, programs
from archzoo.zoo.configs import spec_from_hf

from .cases import FIRST, LENGTH, Case

QUICK = ("gemma4_text", "qwen3_next", "nemotron_h", "deepseek_v32", "longcat_flash", "kimi_linear")
"""Between them: windows, latents, indexers, delta rules, state spaces, routers, per-layer inputs."""


def refused(case: Case, execution: Execution, mesh: str = "") -> Mapping[str, Any]:
    """The errors, by program."""
    spec = spec_from_hf(dict(case.config))
    placement = on_no_devices(spec, mesh, "default", 4, LENGTH) if mesh else None
    found = {}
    for name, program in programs(spec, execution, 4, LENGTH, placement).items():
        findings = check(program.function, *program.shapes, mesh=placement and placement.mesh)
        found[name] = [finding for finding in findings if finding.severity == "error"]
    return found


NOTHING: dict[str, list[Any]] = {"init": [], "train": [], "prefill": [], "decode": [], "sample": []}


@pytest.mark.parametrize("case", [case for case in FIRST if case.family in QUICK], ids=lambda case: case.family)
def test_every_kind_of_layer_passes(case: Case) -> None:
    assert refused(case, Execution(target="neuron")) == NOTHING


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in FIRST if case.family not in QUICK], ids=lambda case: case.family)
def test_every_family_passes(case: Case) -> None:
    assert refused(case, Execution(target="neuron")) == NOTHING


def named(family: str) -> Case:
    return next(case for case in FIRST if case.family == family)


def test_a_model_passes_on_a_mesh_and_in_bfloat16() -> None:
    assert refused(named("qwen3_moe"), Execution(target="neuron", dtype="bfloat16"), "fsdp=2,expert=2") == NOTHING


def test_the_same_model_as_other_platforms_run_it_is_refused() -> None:
    found = refused(named("mixtral"), Execution(target="cpu"))
    assert {finding.code for finding in found["train"]} >= {"EVRF031/056", "EVRF016/060"}
    assert {finding.code for finding in found["sample"]} >= {"EVRF006"}
