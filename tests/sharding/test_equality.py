"""Training on a mesh is training on one device: losses, gradients, parameters, where every array lies, what a device
holds and what it computes.

On virtual devices of a CPU, which take a process of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("equality.py")
TOLERANCE = 1e-5
DUPLICATE = 1.05
"""FLOPs of all devices together, relative to one device's."""

NOTHING_ALIKE = ("llama", "gemma3", "qwen3_next")
"""Without routers and products into latents, which have no axis over tensor."""

FAMILIES = ("llama", "gemma3", "deepseek_v3", "qwen3_moe", "qwen3_next")


def table(*arguments: str) -> dict[str, dict[str, Any]]:
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), "--json", *arguments], env=os.environ, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: dict[str, dict[str, Any]] = json.loads(ran.stdout)
    return found


def assert_equal(found: dict[str, dict[str, Any]]) -> None:
    for family, rows in found.items():
        for mesh, row in rows.items():
            apart = {name: row[name] for name in ("loss", "gradient", "parameters")}
            assert max(apart.values()) < TOLERANCE, (family, mesh, apart)
            assert row["initial"] == 0, (family, mesh)
            assert row["dropped"] == 0, (family, mesh)
            assert row["misplaced"] == [], (family, mesh)
            assert row["held"] == [], (family, mesh)
            if "sequence" not in mesh:  # whose work this count does not follow
                work = {name: value for name, value in row.items() if name in ("dense", "alike", "experts", "rows")}
                assert row["dense"] < DUPLICATE * row["alike"], (family, mesh, work)
                assert row["alike"] == 1 or family not in NOTHING_ALIKE, (family, mesh, work)
                if "expert" not in mesh:  # what travels to experts has other room
                    assert row.get("experts", 1) < DUPLICATE * row.get("rows", 1), (family, mesh, work)


def test_five_families_train_on_eight_devices_as_on_one() -> None:
    found = table("--mesh", "fsdp=4,tensor=2", "data=2,expert=2,sequence=2")
    assert set(found) == set(FAMILIES)
    assert_equal(found)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mesh_of_eight_devices_is_one_device(family: str) -> None:
    found = table("--family", family)
    assert len(found[family]) >= 12
    assert_equal(found)


@pytest.mark.slow
def test_sixteen_devices_are_one_device() -> None:
    found = table("--devices", "16")
    assert set(found) == set(FAMILIES)
    assert_equal(found)
