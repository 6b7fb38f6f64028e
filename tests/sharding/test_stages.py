"""Training whose depth is cut among stages is training on one device, and only what must travels.

On virtual devices of a CPU, which take a process of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("stages.py")
TOLERANCE = 1e-5
COARSE = 2e-3
"""Losses in bfloat16, relative."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    ran = subprocess.run([sys.executable, str(PROGRAM)], env=os.environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dense", "windows", "experts"])
def test_stages_train_as_one_device(found: dict[str, Any], case: str) -> None:
    """Losses of five steps, gradients of the first leaf by leaf, and the sums that auxiliary losses are made of."""
    told = found[case]
    assert max(told[name] for name in ("loss", "gradient", "statistics")) < TOLERANCE, told


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dense", "windows", "experts"])
def test_each_stage_holds_its_own_layers_and_optimizer_state(found: dict[str, Any], case: str) -> None:
    deepest = "run_1" if case == "experts" else "run_0"
    for path, held in found[case]["shardings"].items():
        assert held.startswith("P('stage'") == (f"'{deepest}'" in path), (path, held)
    moments = [path for path in found[case]["shardings"] if deepest in path and "opt_state" in path]
    assert moments


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dense", "windows", "experts"])
def test_microbatches_travel_and_layers_stay(found: dict[str, Any], case: str) -> None:
    told = found[case]
    assert told["permutes"] >= 2  # one each way
    assert told["stacks"] == []
    assert told["rows"] == []


@pytest.mark.slow
def test_stages_compute_in_bfloat16(found: dict[str, Any]) -> None:
    coarse, fine = found["dense"]["coarse"], found["dense"]["fine"]
    assert max(abs(a - b) / b for a, b in zip(coarse, fine, strict=True)) < COARSE
