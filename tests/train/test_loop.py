"""A run leaves what it promises, resumes to the bit, and stops when asked."""

import dataclasses
import json
import os
import shutil
import signal
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from archzoo import MODELS, spec_from_hf, spec_to_hf
from archzoo.train.loop import Interrupted, fitted, resumable, train
from archzoo.train.tokenizer import bytes_tokenizer


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_more_than_letter_frequencies(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["heldout_nats"] < summary["unigram_nats"]
    assert summary["tokens"] == sum(line["tokens"] for line in metrics(run))
    assert summary["bits_per_byte"] > 0
    assert summary["seconds"] > 0


def test_every_step_has_its_line(run: Path) -> None:
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert sum("heldout" in line for line in lines) == 2
    assert all(line["dropped"] == 0 for line in lines)


def test_the_loss_curve_is_a_picture_of_the_run(run: Path) -> None:
    drawn = ET.parse(run / "loss.svg").getroot()
    lines = [element for element in drawn.iter() if element.tag.endswith("polyline")]
    assert max(len(line.get("points", "").split()) for line in lines) == 60


@pytest.fixture(scope="module")
def stopped(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped by Ctrl-C early, and again later, then finished."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    spec, settings = resumable(run)

    def interrupt_at(step: int) -> Any:
        return lambda line: os.kill(os.getpid(), signal.SIGINT) if line["step"] == step else None

    untrained = spec.replace(hf=None)
    with pytest.raises(Interrupted, match=r"step 15 of 60.*--resume"):
        train(untrained, settings, out, report=interrupt_at(15))
    with pytest.raises(Interrupted, match="step 39 of 60"):
        train(*resumable(out), out, resume=True, report=interrupt_at(39))
    train(*resumable(out), out, resume=True)
    return out


def test_resuming_twice_gives_the_losses_of_an_unbroken_run_to_the_bit(run: Path, stopped: Path) -> None:
    clock = ("seconds",)
    assert [{k: v for k, v in line.items() if k not in clock} for line in metrics(stopped)] == [
        {k: v for k, v in line.items() if k not in clock} for line in metrics(run)
    ]


def test_other_data_is_not_resumed_with(run: Path, tmp_path: Path, text: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(text, tmp_path / "text")
    (tmp_path / "text" / "more.py").write_text("more = 1\n" * 99)
    spec, settings = resumable(tmp_path / "run")
    with pytest.raises(ValueError, match="other data"):
        train(spec, dataclasses.replace(settings, data=(str(tmp_path / "text"),)), tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("-nano")])
def test_a_preset_fitted_to_the_tokenizer_can_still_be_exported(run: Path, name: str) -> None:
    spec = fitted(MODELS[name], bytes_tokenizer(), resumable(run)[1], keep=False)
    read = spec_from_hf(spec_to_hf(spec))
    assert read.layers == spec.layers
    assert read.replace(attention=spec.attention, mlp=spec.mlp, block=spec.block) == spec


def test_a_run_is_not_overwritten(run: Path) -> None:
    with pytest.raises(FileExistsError, match="--resume"):
        train(*resumable(run), run)
