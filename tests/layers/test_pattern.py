"""Patterns expand as they read, and runs are the shortest way to write the same layers."""

import random
from functools import cache
from itertools import product

import pytest

from archzoo.layers.pattern import Run, expand, runs


@pytest.mark.parametrize(
    ("pattern", "depth", "layers"),
    [
        (("a",), 3, "aaa"),
        (("l", "l", "g"), 7, "llgllgl"),
        (("d", "d", "m", ...), 5, "ddmmm"),
        (("d", "m", ...), 2, "dm"),
        (("l", "l", "g"), 2, "ll"),
        (("d", "d", "d", "m", ...), 2, "dd"),
    ],
)
def test_a_pattern_repeats_or_ends_in_its_last_entry(pattern: tuple[object, ...], depth: int, layers: str) -> None:
    assert "".join(map(str, expand(pattern, depth))) == layers


@pytest.mark.parametrize("pattern", [(), (...,), ("a", ..., "b"), (..., "a"), ("a", ..., ...)])
def test_a_pattern_without_entries_or_with_dots_inside_is_refused(pattern: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least one entry, and '\.\.\.' only at its end"):
        expand(pattern, 4)


def written(layers: str) -> list[tuple[str, int]]:
    return [("".join(run.period), run.repeats) for run in runs(layers)]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("a" * 16, [("a", 16)]),
        (("l" * 5 + "g") * 4 + "ll", [("lllllg", 4), ("l", 2)]),  # Gemma 3 1B
        ("d" * 3 + "m" * 58, [("d", 3), ("m", 58)]),  # DeepSeek-V3
        ("lg" * 13, [("lg", 13)]),  # Gemma 2 2B
        ("a", [("a", 1)]),
        ("aaaabaab", [("a", 2), ("aab", 2)]),  # a run may stop before it must
    ],
)
def test_known_depths_split_into_their_runs(layers: str, expected: list[tuple[str, int]]) -> None:
    assert written(layers) == expected


def random_layers(seed: int) -> str:
    rng = random.Random(seed)
    parts = ("".join(rng.choices("abc", k=rng.randint(1, 3))) * rng.randint(1, 5) for _ in range(rng.randint(1, 4)))
    return "".join(parts)


@pytest.mark.parametrize("seed", range(20))
def test_runs_reassemble_to_the_layers(seed: int) -> None:
    layers = random_layers(seed)
    depths = {}
    for run in runs(layers):
        for repeat, position in product(range(run.repeats), range(len(run.period))):
            depths[run.depth_of(position, repeat)] = run.period[position]
    assert [depths[d] for d in range(len(layers))] == list(layers)
    assert len(depths) == len(layers)


@cache
def cheapest(layers: str) -> tuple[int, int]:
    """The fewest (bodies, runs), by trying every first run."""
    if not layers:
        return 0, 0
    costs = []
    for period, repeats in product(range(1, len(layers) + 1), range(1, len(layers) + 1)):
        run = layers[:period] * repeats
        if layers.startswith(run):
            bodies, count = cheapest(layers[len(run) :])
            costs.append((bodies + period, count + 1))
    return min(costs)


def test_no_other_split_has_fewer_bodies_or_as_few_in_fewer_runs() -> None:
    every = ["".join(p) for length in range(1, 9) for p in product("ab", repeat=length)]
    for layers in [*every, *map(random_layers, range(60))]:
        split = runs(layers)
        assert (sum(len(run.period) for run in split), len(split)) == cheapest(layers), layers


def test_a_hundred_layers_split_quickly_and_deeply() -> None:
    assert runs("a" * 126) == (Run(0, ("a",), 126),)
    assert [(len(run.period), run.repeats) for run in runs(("l" * 5 + "g") * 20 + "l")] == [(6, 20), (1, 1)]
