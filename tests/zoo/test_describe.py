"""Models in words and numbers: the words follow from the spec, the numbers from its shapes."""

import pytest

from archzoo import MODELS
from archzoo.zoo.describe import amount, details, difference, drawn, summary


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
    ],
)
def test_blocks_are_drawn_as_their_formulas(name: str, formulas: list[str]) -> None:
    words = drawn(name, MODELS[name])
    assert all(formula in words for formula in formulas)


def test_a_spec_does_not_differ_from_itself() -> None:
    found = difference(MODELS["qwen3-nano"], MODELS["qwen3-nano"])
    assert found["fields"] == {}
    assert all(a == b for a, b in found["numbers"].values())
