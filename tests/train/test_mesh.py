"""A run of the command line on a mesh, by one process or several, is the run on one device."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from archzoo.cli import main

RUN = (
    "llama3-nano", "--set", "width=32", "--set", "depth=2", "--set", "attention.heads=4", "--set",
    "attention.kv_heads=2", "--set", "attention.head_dim=32", "--set", "mlp.ffn=48", "--steps", "4", "--batch", "8",
    "--length", "32", "--evals", "1", "--saves", "1", "--json",
)  # fmt: skip
PROGRAM = "import sys; from archzoo.cli import main; sys.exit(main(sys.argv[1:]))"
WATCHED = """
import sys
import jax
from archzoo.cli import main
from archzoo.train import loop

started = loop._started

def watched(*given):
    whole = [x.shape for x in jax.live_arrays() if x.size > 1000 and x.sharding.is_fully_replicated]
    assert not whole, whole
    return started(*given)

loop._started = watched
sys.exit(main(sys.argv[1:]))
"""
"""A run that starts from parameters, of which no device may hold a large one whole."""

TOLERANCE = 1e-5


def started(devices: int, *arguments: str, program: str = PROGRAM) -> "subprocess.Popen[str]":
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", program, "train", *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(*processes: "subprocess.Popen[str]") -> list[str]:
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), told
    return [out for out, _ in told]


def together(count: int, devices: int, *arguments: str) -> list[str]:
    """What each of several processes says on stdout."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    whole = ("--coordinator", address, "--processes", str(count))
    return finished(*(started(devices, *arguments, *whole, "--process-id", str(i)) for i in range(count)))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def back_to(run: Path, step: int) -> None:
    """Takes later steps from a run."""
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mesh") / "alone"
    assert main(["train", *RUN, "--data", str(text), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2", pytest.param("stage=2,fsdp=2", marks=pytest.mark.slow)])
def test_a_run_goes_on_on_another_mesh(mesh: str, alone: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "spread"
    shutil.copytree(alone, out)
    back_to(out, 2)
    finished(started(4, "--resume", str(out), "--mesh", mesh, "--json"))
    assert losses(out) == pytest.approx(losses(alone), rel=TOLERANCE)


@pytest.mark.slow
def test_a_run_in_stages_goes_on_without(alone: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "stages"
    cut = ("--mesh", "stage=2,fsdp=2", "--microbatches", "4")
    finished(started(4, *RUN, "--data", str(text), "--out", str(out), *cut))
    assert losses(out) == pytest.approx(losses(alone), rel=TOLERANCE)
    back_to(out, 2)
    assert main(["train", "--resume", str(out), "--mesh", "", "--json"]) == 0
    assert losses(out) == pytest.approx(losses(alone), rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_are_one(count: int, alone: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "together"
    told = together(count, 4 // count, *RUN, "--data", str(text), "--out", str(out), "--mesh", "data=2,fsdp=2")
    assert [bool(said) for said in told] == [True] + [False] * (count - 1)
    assert losses(out) == pytest.approx(losses(alone), rel=TOLERANCE)
    back_to(out, 2)
    finished(started(4, "--resume", str(out), "--mesh", "fsdp=4", "--json"))
    assert losses(out) == pytest.approx(losses(alone), rel=TOLERANCE)
    back_to(out, 2)
    together(2, 2, "--resume", str(out), "--mesh", "auto", "--json")
    assert losses(out) == pytest.approx(losses(alone), rel=TOLERANCE)


def test_a_checkpoint_is_trained_in_parts_and_exported_as_by_one_device(
    exported: Path, text: Path, tmp_path: Path
) -> None:
    more = ("--steps", "2", "--batch", "4", "--length", "32", "--evals", "0", "--saves", "0", "--json")
    runs = {mesh: tmp_path / (mesh or "alone") for mesh in ("", "fsdp=2,expert=2")}
    given = (str(exported), *more, "--data", str(text), "--optimizer", "adamw")
    assert main(["train", *given, "--out", str(runs[""])]) == 0
    finished(started(4, *given, "--out", str(runs["fsdp=2,expert=2"]), "--mesh", "fsdp=2,expert=2", program=WATCHED))
    for run in runs.values():
        assert main(["export", str(run), str(run / "export")]) == 0
    one, many = (load_file(run / "export" / "model.safetensors") for run in runs.values())
    assert one.keys() == many.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(many[name], tensor, atol=TOLERANCE * np.abs(tensor).max(), rtol=0, err_msg=name)


def test_a_mesh_that_does_not_fit_is_one_line(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["train", *RUN, "--data", str(text), "--out", out, "--mesh", "fsdp=64"]) == 1
    assert "mesh fsdp=64 needs 64 devices" in capsys.readouterr().err
    assert main(["train", *RUN, "--data", str(text), "--out", out, "--coordinator", "localhost:1"]) == 1
    assert "needs --processes and --process-id too" in capsys.readouterr().err
