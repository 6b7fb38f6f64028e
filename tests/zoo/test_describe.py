"""Models in words and numbers: the words follow from the spec, the numbers from its shapes."""

import json
import re
from dataclasses import dataclass

import pytest

from archzoo import MODELS
from archzoo.layers.norms import RMSNorm
from archzoo.zoo.amounts import amount, size
from archzoo.zoo.describe import details, difference, drawn, summary
from archzoo.zoo.steps import Kind, kinds, order
from archzoo.zoo.words import words_of


@pytest.mark.parametrize(
    ("count", "words"), [(999, "999"), (999_600, "1M"), (999_885_952, "1B"), (671_026_419_200, "671B"), (7168, "7.17k")]
)
def test_amounts_have_three_digits_and_the_right_unit(count: int, words: str) -> None:
    assert amount(count) == words


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("-nano")])
def test_the_parts_add_up_to_the_whole(name: str) -> None:
    told = details(name, MODELS[name])
    assert sum(told["parts"].values()) == told["parameters"]
    assert sum(run["repeats"] * len(run["period"]) for run in told["runs"]) == told["layers"]


def test_bytes_are_told_in_their_own_units() -> None:
    assert [size(count) for count in (0, 999, 2_302_672_904, 163_745_628_160)] == ["0 B", "999 B", "2.3 GB", "164 GB"]


def test_full_caches_are_what_plain_attention_would_keep() -> None:
    assert summary("", MODELS["deepseek-v3"], 32768)["full_cache_bytes"] == 128 * (192 + 128) * 61 * 2 * 32768
    gemma = MODELS["gemma3-12b"]
    told = summary("", gemma, 32768)
    assert told["full_cache_bytes"] == 48 * 2 * 8 * 256 * 2 * 32768
    assert told["cache_bytes"] / told["full_cache_bytes"] == pytest.approx(0.193, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "formulas"),
    [
        ("llama3-nano", ["x = x + attention(norm(x))", "x = x + mlp(norm(x))"]),
        ("olmo2-nano", ["x = x + norm(attention(x))", "x = x + norm(mlp(x))"]),
        ("gemma3-nano", ["x = x + norm(attention(norm(x)))", "x = x + norm(mlp(norm(x)))"]),
        ("cohere2-nano", ["u = norm(x)", "y = attention(u)", "x = x + y + mlp(u)"]),
        ("longcat-flash-nano", ["u = norm(x)", "x = x + mlp(u)", "x = x + mlp(norm(x))", "x = x + experts(u)"]),
        ("deepseek-v4-nano", ["x = M x + p attention(norm(q x))", "x = M x + p mlp(norm(q x))"]),
    ],
)
def test_blocks_are_drawn_as_their_formulas(name: str, formulas: list[str]) -> None:
    words = drawn(name, MODELS[name])
    assert all(formula in words for formula in formulas)


def test_a_spec_does_not_differ_from_itself() -> None:
    found = difference(MODELS["qwen3-nano"], MODELS["qwen3-nano"])
    assert found["fields"] == {}
    assert all(a == b for a, b in found["numbers"].values())


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("-nano")])
def test_every_layer_is_of_one_kind_and_in_the_order_of_depth(name: str) -> None:
    spec, found = MODELS[name], kinds(MODELS[name])
    assert sorted(depth for kind in found for depth in kind.depths) == list(range(spec.depth))
    letters = "".join(
        period * int(repeats or 1) for repeats, period in re.findall(r"(?:(\d+) x )?([A-Z]+)", order(spec, found))
    )
    assert [letters[depth] for kind in found for depth in kind.depths] == [k.letter for k in found for _ in k.depths]


def test_a_layer_that_is_absent_is_not_told() -> None:
    told = drawn("nemotron-h-nano", MODELS["nemotron-h-nano"])
    assert "Mamba-2" in told
    assert "Absent" not in told
    assert "Absent" not in json.dumps(difference(MODELS["nemotron-h-nano"], MODELS["llama3-nano"])["words"])


@dataclass(frozen=True, kw_only=True)
class GatedPooling:
    """A layer of one's own, as far as it is told."""

    heads: int
    reach: int = 4
    norm: RMSNorm = RMSNorm()


def test_a_layer_of_ones_own_is_told_by_its_type_and_fields() -> None:
    assert words_of(GatedPooling(heads=8)) == ("Gated Pooling", "heads 8")
    assert words_of(GatedPooling(heads=8, reach=2, norm=RMSNorm(eps=1))) == (
        "Gated Pooling",
        "heads 8, reach 2, RMSNorm",
    )


@pytest.mark.parametrize(
    ("depths", "words"),
    [
        ((3,), "layer 3"),
        ((0, 1, 2), "layers 0-2"),
        ((5, 11, 17), "3 layers, every 6th from 5"),
        ((1, 3), "2 layers, every 2nd from 1"),
        ((0, 1, 3), "3 of 24 layers"),
    ],
)
def test_where_layers_are_is_told_in_short(depths: tuple[int, ...], words: str) -> None:
    assert Kind("A", (), depths).where(24) == words
