"""Variety over depth: patterns of layer specs, and the split of the depth into runs that are each one scan.

A pattern repeats cyclically, `(LOCAL,) * 5 + (GLOBAL,)`; one that ends in `...` repeats its last entry, `(DENSE,
DENSE, MOE, ...)`."""

from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any, NamedTuple


class Run(NamedTuple):
    """`repeats` passes over the layers `period`; `start` is the depth of the first."""

    start: int
    period: tuple[Any, ...]
    repeats: int

    def depth_of(self, position: int, repeat: int) -> int:
        """The depth of layer `position` of the period in pass `repeat`."""
        return self.start + repeat * len(self.period) + position


def deepest(runs: Sequence[Run]) -> int:
    """The index of the first run of the most repeats: the one that may be cut among stages (pipeline.py)."""
    return max(range(len(runs)), key=lambda r: (runs[r].repeats, -r))


def expand(pattern: Sequence[Any], depth: int) -> tuple[Any, ...]:
    """The entry at each depth.

    A pattern longer than the depth is cut. Raises ValueError for an empty pattern, or a `...` elsewhere than last.
    """
    entries, repeat_last = tuple(pattern), bool(pattern) and pattern[-1] is Ellipsis
    entries = entries[:-1] if repeat_last else entries
    if not entries or any(entry is Ellipsis for entry in entries):
        raise ValueError(f"a pattern needs at least one entry, and '...' only at its end: {pattern!r}")
    if repeat_last:
        return (entries + entries[-1:] * depth)[:depth]
    return tuple(entries[i % len(entries)] for i in range(depth))


def runs(layers: Sequence[Hashable]) -> tuple[Run, ...]:
    """The split with the fewest layer bodies to compile, among those the fewest runs, then the longest first period.

    Gemma 3's five local layers to one global, 26 deep, is a period of six four times and then two local layers;
    DeepSeek-V3 is 3 dense layers and 58 with experts."""
    layers = tuple(layers)

    @cache
    def best(start: int) -> tuple[tuple[int, int], tuple[Run, ...]]:
        if start == len(layers):
            return (0, 0), ()
        options = []
        for period in range(len(layers) - start, 0, -1):
            body, end = layers[start : start + period], start
            while layers[end : end + period] == body:
                end += period
                (bodies, parts), rest = best(end)
                options.append(((bodies + period, parts + 1), (Run(start, body, (end - start) // period), *rest)))
        return min(options, key=lambda option: option[0])

    # Depth first would recurse once a layer: fill the table from the end instead.
    for start in range(len(layers), -1, -1):
        best(start)
    return best(0)[1]
