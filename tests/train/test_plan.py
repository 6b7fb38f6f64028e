"""Plans by arithmetic: bytes equal what the shardings give, parts and meshes trade as they must, and the command line
says what is wrong; what is compiled elsewhere is read by tests/sharding/test_hlo.py."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from archzoo import MODELS
from archzoo.cli import main
from archzoo.sharding.hlo import Collective
from archzoo.sharding.mesh import parse_mesh
from archzoo.sharding.rules import Rules
from archzoo.train.estimate import Job, decode, estimate
from archzoo.train.frontier import frontier, picture
from archzoo.train.plan import OPTIMIZER, candidates, default, job_of, meshes, planned, ranked
from archzoo.train.planned import page
from archzoo.train.step import state_shapes, state_shardings

NANO = "deepseek-v3-nano"

COMPILED = [
    ("fsdp=64,expert=4", "p5en.48xlarge", 1, 145.8),
    ("fsdp=32,expert=8", "p5en.48xlarge", 1, 195.9),
    ("fsdp=16,expert=16", "p5en.48xlarge", 1, 297.5),
    ("fsdp=128,expert=2", "p5en.48xlarge", 2, 115.5),
    ("fsdp=64,expert=2,tensor=2", "p5en.48xlarge", 2, 121.6),
    ("fsdp=32,expert=4,tensor=2", "p5en.48xlarge", 2, 149.0),
    ("data=2,fsdp=16,expert=8", "u-p6e-gb200x72", 1, 263.9),
]
"""Meshes, instances, parts of a batch of 2,048 rows of 4,096 tokens, and GB a device, as jaxlib 0.10.2 planned them."""


def job(name: str = NANO, **more: Any) -> Job:
    given: dict[str, Any] = {"on": "trn2.48xlarge", "nodes": 1, "sizes": {"fsdp": 4, "expert": 4}, "batch": 64}
    return Job(spec=MODELS[name], **{**given, "length": 256, **more})


@pytest.mark.parametrize(
    ("name", "sizes"),
    [(NANO, {"fsdp": 4, "expert": 4}), (NANO, {"data": 16}), ("llama3.1-8b", {"fsdp": 8, "tensor": 2})],
    ids=str,
)
def test_the_states_bytes_are_those_of_its_shardings(name: str, sizes: dict[str, int]) -> None:
    made = job(name, sizes=sizes)
    mesh: Any = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    shapes = state_shapes(made.spec, OPTIMIZER)
    shardings = state_shardings(made.spec, OPTIMIZER, mesh, Rules())
    held = sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    )
    guess = estimate(made).bytes
    assert guess["params"] + guess["optimizer"] == pytest.approx(held, rel=0.01)


def test_a_group_spans_the_nodes_it_lies_over() -> None:
    made = job(nodes=2, sizes={"fsdp": 4, "expert": 8})
    assert made.group(["expert"]) == (8, 1)
    assert made.group(["fsdp"]) == (4, 2)
    assert made.group(["fsdp", "expert"]) == (32, 2)


def test_weights_are_gathered_for_every_part_and_tokens_travel_once() -> None:
    def sums(made: Job) -> dict[str, int]:
        sent: list[Collective] = estimate(made).collectives
        kinds = {one.kind for one in sent}
        return {kind: sum(one.bytes * one.count for one in sent if one.kind == kind) for kind in kinds}

    whole, parts = sums(job()), sums(job(accumulate=4))
    assert parts["all-gather"] == 4 * whole["all-gather"]
    assert parts["all-to-all"] == whole["all-to-all"]
    tokens, spec = 64 * 256 // 16, MODELS[NANO]
    routed = [layer.mlp.experts_per_token for layer in spec.layers if hasattr(layer.mlp, "experts_per_token")]
    assert whole["all-to-all"] == tokens * spec.width * 2 * sum(routed) * 6  # there and back: forward, again, backward


def test_parts_and_recomputation_save_activations() -> None:
    full, parts, none = (estimate(made) for made in (job(), job(accumulate=4), job(remat="none")))
    assert parts.bytes["activations"] == full.bytes["activations"] / 4
    assert none.bytes["activations"] > 3 * full.bytes["activations"]
    assert full.work.flops == pytest.approx(none.work.flops * 4 / 3)


def test_every_mesh_has_all_devices_and_those_that_do_not_divide_are_left_out() -> None:
    every = list(meshes(16))
    assert all(math.prod(sizes.values()) == 16 for sizes in every)
    assert len({str(sizes) for sizes in every}) == len(every)
    wide = job_of(MODELS[NANO], "trn2.48xlarge", 1, 64, 256)
    found = list(candidates(wide))
    assert found
    assert not any(made.unfit() for made in found)
    assert 0 < len({str(made.sizes) for made in found}) < len(every)


def test_what_fits_comes_before_what_does_not_and_the_fastest_first() -> None:
    large = job_of(MODELS["llama3.1-8b"], "trn2.48xlarge", 1, 64, 4096)
    order = ranked(candidates(large, ("full", "none")))
    assert all(guess.peak <= large.instance.memory.value for _, guess in order)
    best = planned(order[0][0])["estimates"]["seconds"]["least"]
    assert best <= planned(order[-1][0])["estimates"]["seconds"]["least"]
    small = replace(large, on="inf2.48xlarge", batch=12)
    assert default(small, ("full",)).sizes  # none fits an Inferentia2: the one that needs least is told


def test_devices_that_no_mesh_divides_stay_idle() -> None:
    """72 GPUs divide neither 256 experts nor a width of 7,168: of each 64 are used, and share the network of all."""
    large = job_of(MODELS["deepseek-v3"], "u-p6e-gb200x72", 4, 2048, 4096)
    chosen = default(large, ("full",))
    assert (chosen.devices, chosen.per_node) == (256, 64)
    plan = planned(chosen, compile_it=False)
    assert (plan["devices"], plan["idle"]) == (256, 32)
    assert "32 devices stay idle" in page("deepseek-v3", plan)
    assert plan["estimates"]["usd_per_billion_tokens"] == pytest.approx(
        4 * 761.9 / 3600 / plan["estimates"]["tokens_per_second"] * 1e9
    )
    with pytest.raises(ValueError, match="4 x u-p6e-gb200x72 have 288, of which 256 may be used"):
        default(large, ("full",), {"fsdp": 128})


@pytest.mark.parametrize(("mesh", "on", "accumulate", "peak"), COMPILED, ids=str)
def test_arithmetic_says_what_the_compiler_said(mesh: str, on: str, accumulate: int, peak: float) -> None:
    """The peak of DeepSeek-V3's step, as compiled for 256 devices, within a tenth; the target is a fifth."""
    whole = job_of(MODELS["deepseek-v3"], on, 4 if "gb200" in on else 32, 2048, 4096)
    guess = estimate(replace(whole, sizes=parse_mesh(mesh), accumulate=accumulate))
    assert guess.peak / 1e9 == pytest.approx(peak, rel=0.1)


def test_experts_have_room_for_the_tokens_of_all_devices_that_share_them() -> None:
    def working(expert: int, dispatch: str) -> float:
        sizes = {"fsdp": 16 // expert, "expert": expert}
        return estimate(job(on="p5.48xlarge", nodes=2, sizes=sizes, dispatch=dispatch)).bytes["working"]

    assert working(4, "grouped") > working(2, "grouped")
    assert working(4, "capacity") == working(2, "capacity") == working(2, "grouped")  # slots for twice an even load


def test_decoding_reads_chosen_experts_once() -> None:
    spec = MODELS["deepseek-v3"]
    one, many = (decode(spec, "p5en.48xlarge", 2, batch, 4096) for batch in (1, 4096))
    bandwidth = 16 * 4.8e12
    read = (spec.active_param_count() - spec.vocab * spec.width) * 2 + spec.cache_bytes(1, 4096)
    assert one["estimates"]["seconds"]["memory"] == pytest.approx(read / bandwidth, rel=0.01)
    everything = (spec.param_count() - spec.vocab * spec.width) * 2 + spec.cache_bytes(4096, 4096)
    assert many["estimates"]["seconds"]["memory"] == pytest.approx(everything / bandwidth, rel=0.01)
    assert one["bytes"]["cache"] * 16 == spec.cache_bytes(1, 4096)


def test_decoding_with_tied_embeddings_and_windows_reads_all_weights_and_holds_its_cache() -> None:
    spec = MODELS["gemma3-nano"]
    plan = decode(spec, "trn2.48xlarge", 1, 8, 1024)
    assert plan["bytes"]["cache"] * 16 == spec.cache_bytes(8, 1024) < 8 * 1024 * spec.cache_bytes(1, 1)
    assert plan["bytes"]["params"] * 16 == spec.param_count() * 2
    assert plan["estimates"]["seconds"]["memory"] == pytest.approx(
        (spec.param_count() * 2 + spec.cache_bytes(8, 1024)) / (16 * 2.9e12)
    )
    assert plan["estimates"]["tokens_per_second"] == pytest.approx(8 / plan["estimates"]["seconds"]["least"])


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, {"JAX_PLATFORMS": "cpu"}.get(name, "3"))


@pytest.mark.parametrize(("on", "devices"), [("c7i.48xlarge", 2), ("trn2.48xlarge", 32)])
def test_a_plan_without_a_compiler(on: str, devices: int, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", NANO, "--on", on, "--nodes", "2", "--batch", "32", "--length", "256"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == devices == math.prod(found["mesh"].values())
    assert set(found["bytes"]) == {"params", "optimizer", "temp", "peak"}
    assert found["fits"]
    assert not found["compiled"]
    assert {"kind", "bytes", "count", "link"} <= set(found["collectives"][0])
    seconds = found["estimates"]["seconds"]
    assert ("expected" in seconds) == (on == "c7i.48xlarge")
    assert seconds["least"] == seconds[found["estimates"]["bound"]] <= seconds["most"]
    assert found["estimates"]["tokens_per_second"] == pytest.approx(32 * 256 / seconds["least"])
    assert main(command) == 0
    assert "arithmetic, nothing compiled" in capsys.readouterr().out


def test_a_search_is_ranked_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture_at = tmp_path / "search.svg"
    command = ["plan", NANO, "--on", "trn2.48xlarge", "--batch", "64", "--length", "256", "--search", "--most", "6"]
    assert main([*command, "--json", "--svg", str(picture_at)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [plan["predicted_rank"] for plan in found] == [1, 2, 3, 4, 5, 6]
    times = [plan["estimates"]["seconds"]["least"] for plan in found]
    assert times == sorted(times)
    circles = ElementTree.fromstring(picture_at.read_text()).findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 6
    with pytest.raises(ValueError, match="at least one plan"):
        picture("nothing", [])


def test_the_frontier_is_what_no_other_plan_beats() -> None:
    def plan(least: float, peak: float) -> dict[str, Any]:
        return {"estimates": {"seconds": {"least": least}}, "bytes": {"peak": peak}}

    plans = [plan(2, 50), plan(1, 100), plan(1, 90), plan(3, 60), plan(4, 10)]
    assert frontier(plans) == [plan(1, 90), plan(2, 50), plan(4, 10)]


def test_a_model_without_experts_has_no_axis_of_experts() -> None:
    dense = job_of(MODELS["llama3-nano"], "trn2.48xlarge", 1, 64, 256)
    assert {made.sizes.get("expert", 1) for made in candidates(dense)} == {1}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--on", "p5.48xlarg"], "did you mean p5.48xlarge?"),
        (["--on", "trn2.48xlarge", "--mesh", "fsdp=4"], "mesh fsdp=4 needs 4 devices, but 1 x trn2.48xlarge have 16"),
        (["--on", "trn2.48xlarge", "--mesh", "fsdp=16", "--batch", "8"], "does not divide by fsdp=16"),
        (["--on", "trn2.48xlarge", "--search", "--batch", "7"], "no mesh of 16 devices takes a batch of 7 rows"),
        (["--on", "trn2.48xlarge", "--search", "--most", "0"], "--most is 0"),
        (["--on", "trn2.48xlarge", "--rules", "zeros"], "there are default"),
        (["--on", "trn2.48xlarge", "--nodes", "0"], "must be positive"),
        (["--on", "trn2.48xlarge", "--length", "1000000"], "the model takes at most"),
    ],
)
def test_mistakes_are_one_line(changes: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", NANO, "--length", "256", *changes]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_missing_compiler_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("archzoo.sharding.targets.PLUGIN", "jax-plugin-that-nobody-has")
    assert main(["plan", NANO, "--on", "p5.48xlarge", "--length", "256"]) == 1
    assert "pip install 'archzoo[aot]'" in capsys.readouterr().err
