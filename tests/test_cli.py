"""The command line: each command works on whatever names a model; a mistake is one line and an exit code."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from archzoo import MODELS
from archzoo.cli import main
from archzoo.zoo.huggingface import load_hf

from .conftest import TINY, TINY_RUN

Output = pytest.CaptureFixture[str]


def told(output: Output, *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(output.readouterr().out)


def refused(output: Output, *arguments: str) -> str:
    """The one line on stderr of a command that fails with exit code 1 or 2."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own
        code = int(str(stop.code))
    printed = output.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("archzoo: ") and "note:" not in line]
    assert code in (1, 2)
    assert "Traceback" not in printed.err
    assert code == 2 or len(lines) == 1
    return printed.err if code == 2 else lines[0]


# --- looking ---------------------------------------------------------------------------------------------------------


def test_list_has_every_preset_with_its_counts(capsys: Output) -> None:
    rows = told(capsys, "list")
    assert [row["name"] for row in rows] == list(MODELS)
    v3 = next(row for row in rows if row["name"] == "deepseek-v3")
    assert (v3["parameters"], v3["cache_bytes_per_token"]) == (671_026_419_200, 70_272)
    assert 37.5e9 < v3["active"] < 37.6e9


def test_list_sorts_and_filters_and_fits_a_pipe(capsys: Output) -> None:
    assert main(["list", "--family", "olmo2", "--sort", "parameters"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" olmo2")]
    assert [line.split()[0] for line in lines] == ["olmo2-nano", "olmo2-1b", "olmo2-7b", "olmo2-13b", "olmo2-32b"]


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        (["attention~mla", "parameters>1T"], lambda row: row["attention"] == "MLA" and row["parameters"] > 1e12),
        (["router~sigmoid"], lambda row: "sigmoid" in row["router"]),
        (["norm=inner post", "layers<40"], lambda row: row["norm"] == "inner post" and row["layers"] < 40),
        (["cache_bytes_per_token<10k"], lambda row: row["cache_bytes_per_token"] < 10_000),
    ],
)
def test_list_keeps_what_meets_every_condition(
    capsys: Output, conditions: list[str], holds: Callable[[dict[str, Any]], bool]
) -> None:
    everything = told(capsys, "list")
    found = told(capsys, "list", *(word for condition in conditions for word in ("--where", condition)))
    assert found == [row for row in everything if holds(row)]
    assert 0 < len(found) < len(everything)


def test_show_writes_a_picture(capsys: Output, tmp_path: Path) -> None:
    assert main(["show", "gemma3-1b", "--svg", str(tmp_path / "blocks.svg")]) == 0
    root = ElementTree.parse(tmp_path / "blocks.svg").getroot()
    words = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"MQA window 512", "MQA", "4 layers, every 6th from 5", "embedding of 262,144 tokens · 33.94"} <= set(words)


@pytest.mark.parametrize("name", ["deepseek-v3", "gemma3-27b", "qwen3-30b-a3b"])
def test_show_draws_a_model(capsys: Output, name: str) -> None:
    assert main(["show", name]) == 0
    printed = capsys.readouterr().out
    assert "attention(norm(x))" in printed
    assert " to compile" in printed


def test_show_tells_presets_runs_and_directories_alike(capsys: Output, run: Path, exported: Path) -> None:
    assert told(capsys, "show", str(run))["parts"] == told(capsys, "show", str(exported))["parts"]


def test_a_spec_can_be_printed_edited_and_shown(capsys: Output, tmp_path: Path) -> None:
    assert main(["show", "olmo2-nano", "--spec", "--set", "depth=2"]) == 0
    (tmp_path / "mine.json").write_text(capsys.readouterr().out)
    assert told(capsys, "show", str(tmp_path / "mine.json"))["layers"] == 2


def test_diff_names_what_differs_and_by_how_much(capsys: Output) -> None:
    found = told(capsys, "diff", "qwen3-8b", "qwen3-14b")
    assert found["fields"]["width"] == [4096, 5120]
    assert found["numbers"]["parameters"] == [8_190_735_360, 14_768_307_200]
    assert "vocab" not in found["fields"]


# --- models ----------------------------------------------------------------------------------------------------------


SMALL = ("--set", "width=16", "--set", "depth=2", "--set", "attention.heads=2", "--set", "attention.kv_heads=2",
         "--set", "attention.head_dim=8", "--set", "attention.rope.dim=8", "--set", "mlp.ffn=16")  # fmt: skip


def test_check_tells_of_each_program_what_the_chip_would_refuse(capsys: Output) -> None:
    found = told(capsys, "check", "llama3-nano", *SMALL, "--mesh", "fsdp=2", "--batch", "4", "--length", "16")
    (model,) = found["models"]
    assert (model["model"], found["target"], found["mesh"]) == ("llama3-nano", "neuron", "fsdp=2")
    assert set(model["programs"]) == {"init", "train", "prefill", "decode", "sample"}
    severities = {finding["severity"] for each in model["programs"].values() for finding in each}
    assert severities <= {"warning"}
    assert "not proof" in found["note"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "which model?"),
        (("llama3-nano", "--all"), "which model?"),
        (("llama3-nano", *SMALL, "--mesh", "fsdp=7"), "does not divide by fsdp=7"),
        (("llama3-nano", "--target", "tpu"), "invalid choice: 'tpu'"),
    ],
)
def test_a_check_that_cannot_be_made_says_why(capsys: Output, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(capsys, "check", *arguments)


def test_export_holds_the_runs_parameters_and_import_brings_them_back(
    capsys: Output, run: Path, exported: Path, tmp_path: Path
) -> None:
    assert main(["import", str(exported), str(tmp_path / "run")]) == 0
    assert "was imported" in refused(capsys, "train", "--resume", str(tmp_path / "run"))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "again")]) == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


def test_a_model_without_a_tokenizer_moves_but_does_not_write(capsys: Output, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    assert main(["import", str(tmp_path / "bare"), str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "again")]) == 0
    assert not (tmp_path / "again" / "tokenizer.json").exists()
    assert "no tokenizer.json" in refused(capsys, "generate", str(tmp_path / "again"), "--prompt", "x")


def test_generate_is_the_same_from_a_run_and_from_its_export(capsys: Output, run: Path, exported: Path) -> None:
    arguments = ("--prompt", "def function_", "--tokens", "16", "--no-stop")
    ours, theirs = (told(capsys, "generate", str(model), *arguments) for model in (run, exported))
    assert ours == theirs
    assert len(ours["tokens"]) == 16


def test_training_goes_on_from_an_exported_model(capsys: Output, exported: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "more"
    begun = told(capsys, "train", str(exported), *TINY_RUN, "--data", str(text), "--out", str(out))
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert first < begun["unigram_nats"]
    assert load_hf(exported)[0].vocab == 257


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "lama3.1-8b"), "did you mean 'llama3.1-8b'"),
        (("show", "qwen3-8b", "--set", "attention.kv_heads=5"), "multiple of kv_heads, which is 5"),
        (("show", "qwen3-8b", "--set", "attention.rope.dim=7"), "rope rotates pairs"),
        (("show", "deepseek-v3", "--set", "mlp.router.top_k=257"), "cannot exceed"),
        (("show", "deepseek-v3", "--set", "attention.windw=5"), "matches nothing"),
        (("show", "deepseek-v3", "--set", "depth"), "PATH=VALUE"),
        (("show", "deepseek-v3", "--set", "attention=5"), "layer specs"),
        (("list", "--sort", "size"), "columns: name"),
        (("list", "--where", "size<3"), "columns: name"),
        (("list", "--where", "name<3"), "a column of numbers"),
        (("list", "--where", "parameters<some"), "as in parameters<7B"),
        (("train",), "which model"),
        (("train", "--resume", "nowhere"), "no checkpoint to resume from"),
        (("train", "qwen3-nano", "--data", "no/such/folder"), "no/such/folder"),
        (("train", "qwen3-nano", "--length", "200000"), "longer than the model takes"),
        (("train", "qwen3-nano", "--batch", "0"), "batch"),
        (("train", "qwen3-nano", "--tokenizer", "bpe:nine"), "bpe:8192"),
        (("train", "qwen3-nano", "--steps", "many"), "invalid int value"),
        (("paint", "qwen3-nano"), "invalid choice"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    capsys: Output, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    os.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_empty_and_binary_data_are_refused(capsys: Output, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"text\x00\xff")
    assert "empty.txt" in refused(capsys, "train", "qwen3-nano", "--data", str(tmp_path / "empty.txt"))
    assert "binary.txt" in refused(capsys, "train", "qwen3-nano", "--data", str(tmp_path / "binary.txt"))


def test_a_truncated_checkpoint_is_refused_by_name(capsys: Output, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "model")
    whole = (exported / "model.safetensors").read_bytes()
    (tmp_path / "model" / "model.safetensors").write_bytes(whole[:-100])
    line = refused(capsys, "generate", str(tmp_path / "model"), "--prompt", "x")
    assert "model.safetensors" in line
    assert "truncated" in line


def test_a_model_with_parameters_cannot_be_changed(capsys: Output, exported: Path) -> None:
    assert "has parameters" in refused(capsys, "show", str(exported), "--set", "depth=2")


def test_an_ablation_that_hugging_face_cannot_hold_is_not_exported(capsys: Output, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = refused(capsys, "export", "olmo2-nano", str(out), "--set", "attention.window=9")
    assert "attention.window" in line
    assert not out.exists()


def test_more_tokens_than_the_model_takes_are_refused(capsys: Output, exported: Path) -> None:
    limit = MODELS["deepseek-v3-nano"].max_length
    assert str(limit) in refused(capsys, "generate", str(exported), "--prompt", "x", "--tokens", str(limit))


def test_a_full_disk_keeps_what_was_there(
    capsys: Output, run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))  # type: ignore[attr-defined]
    assert "full" in refused(capsys, "export", str(run), str(tmp_path / "model"))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert np.isfinite(json.loads((run / "summary.json").read_text())["heldout_nats"])


def test_ctrl_c_saves_and_says_how_to_go_on(
    capsys: Output, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from archzoo.train import loop

    heldout = loop.heldout_nats

    def interrupted(*arguments: Any) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return heldout(*arguments)

    monkeypatch.setattr(loop, "heldout_nats", interrupted)
    out = tmp_path / "run"
    line = refused(capsys, "train", "deepseek-v3-nano", *TINY, *TINY_RUN, "--data", str(text), "--out", str(out))
    assert f"archzoo train --resume {out}" in line
    monkeypatch.undo()
    assert told(capsys, "train", "--resume", str(out))["steps"] == 60
