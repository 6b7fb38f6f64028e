"""A table as a picture: a bar a row, whiskers at its quartiles, and a mark at its target. SVG text, standard library.

Rows of one unit share an axis; it is logarithmic and starts at 1 where ratios lie far apart. Colours follow the
viewer's preference for light or dark, on a background of the picture's own."""

import html
import math
import statistics
from collections.abc import Sequence
from typing import Any

WIDTH, RIGHT, TOP, ROW, GAP = 900, 190, 74, 26, 46
LETTER = 7.4
"""Pixels of a letter, generously."""
STYLE = """<style>
.back{fill:#fff}.ink{fill:#24292f}.faint{fill:#6e7781}.grid{stroke:#d8dee4}.met{fill:#4c8dca}.short{fill:#e0955a}
.free{fill:#9aa5b1}.line{stroke:#24292f;fill:none}.target{stroke:#1a7f37;stroke-width:2.5}
.stretch{stroke:#1a7f37;stroke-width:1.5;stroke-dasharray:3 2}
@media (prefers-color-scheme:dark){.back{fill:#0d1117}.ink{fill:#e6edf3}.faint{fill:#8d96a0}.grid{stroke:#30363d}
.met{fill:#3f7cb8}.short{fill:#bd7440}.free{fill:#6e7781}.line{stroke:#e6edf3}.target,.stretch{stroke:#3fb950}}
</style>"""
UNITS = {"x": "ratio", "%": "fraction", "s": "seconds"}


def draw(title: str, below: str, rows: Sequence[Any]) -> str:
    """SVG text of rows (harness.py)."""
    left = 30 + LETTER * max(len(row.name) for row in rows)
    panels = {unit: [row for row in rows if row.unit == unit] for unit in UNITS}
    parts, y = [], float(TOP)
    for unit, held in panels.items():
        if held:
            parts += _panel(unit, held, left, y)
            y += ROW * len(held) + GAP
    height = y + 4
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}"'
        f' viewBox="0 0 {WIDTH} {height:.0f}" font-family="system-ui, sans-serif" font-size="13">',
        STYLE,
        f'<rect class="back" width="{WIDTH}" height="{height:.0f}"/>',
        _text(16, 26, title, "ink", 'font-size="16" font-weight="600"'),
        _text(16, 46, below, "faint", 'font-size="12"'),
        *_legend(),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _legend() -> list[str]:
    """What colours and marks mean, at the top right."""
    parts, x = [], WIDTH - 334.0
    for words, kind in (("met", "met"), ("short", "short"), ("target", "target"), ("to hope for", "stretch")):
        if kind in ("target", "stretch"):
            parts.append(f'<path class="{kind}" d="M{x + 8:.1f} 37v13"/>')
        else:
            parts.append(f'<rect class="{kind}" x="{x:.1f}" y="38" width="14" height="11"/>')
        parts.append(_text(x + 20, 48, words, "faint", 'font-size="12"'))
        x += 42 + LETTER * len(words)
    return parts


def _panel(unit: str, rows: Sequence[Any], left: float, top: float) -> list[str]:
    numbers = [statistics.median(row.values) for row in rows if row.values]
    marks = [mark for row in rows for mark in (row.target, row.stretch) if mark is not None]
    highest = max([*numbers, *marks, 1e-9]) * 1.05
    lowest = min([*numbers, *marks, highest])
    logarithmic = unit == "x" and highest > 12 * lowest
    start = min(1.0, 0.9 * lowest) if logarithmic else 0.0
    ticks = _powers(start, highest) if logarithmic else _ticks(highest)
    bottom = top + ROW * len(rows)

    def at(value: float) -> float:
        value = min(max(value, start), highest)
        part = math.log(value / start) / math.log(highest / start) if logarithmic else value / highest
        return left + (WIDTH - left - RIGHT) * part

    parts = []
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{at(tick):.1f} {top - 4:.1f}V{bottom:.1f}"/>')
        parts.append(_text(at(tick), bottom + 16, _number(tick, unit), "faint", 'font-size="11" text-anchor="middle"'))
    for i, row in enumerate(rows):
        parts += _bar(row, top + ROW * i, left, at, at(1.0) if logarithmic else left)
    return parts


def _bar(row: Any, top: float, start: float, at: Any, base: float) -> list[str]:
    middle = top + ROW / 2
    parts = [_text(start - 10, middle + 4, row.name, "ink", 'text-anchor="end"')]
    if row.failed:
        words = _short(row.failed, int((WIDTH - start) / 6))
        return [*parts, _text(start + 6, middle + 4, words, "faint", 'font-size="11" font-style="italic"')]
    ends = [row.values[0]] * 2 if len(row.values) < 2 else statistics.quantiles(row.values, n=4, method="inclusive")
    low, value, high = at(ends[0]), statistics.median(row.values), at(ends[-1])
    kind = {True: "met", False: "short", None: "free"}[row.met()]
    left, right = sorted((base, at(value)))
    parts.append(
        f'<rect class="{kind}" x="{left:.1f}" y="{top + 5:.1f}" width="{right - left:.1f}" height="{ROW - 10}"/>'
    )
    whiskers = f"M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8"
    parts.append(f'<path class="line" d="{whiskers}"/>')
    marks = [(row.target, "target"), (row.stretch, "stretch")]
    for mark, style in marks:
        if mark is not None:
            parts.append(f'<path class="{style}" d="M{at(mark):.1f} {top + 2:.1f}V{top + ROW - 2:.1f}"/>')
    if row.target is not None:
        bound = f"{'≤' if row.at_most else '≥'} {_number(row.target, row.unit)}"
        parts.append(_text(WIDTH - 16, middle + 4, bound, "faint", 'font-size="12" text-anchor="end"'))
    # Right of the bar and of what is drawn close to its end.
    end = max([right, high, *(at(mark) for mark, _ in marks if mark is not None and 0 <= at(mark) - right < 60)])
    words = _number(value, row.unit)
    return [*parts, _text(end + 7, middle + 4, words, "ink", 'font-weight="600"')]


def _text(x: float, y: float, words: str, style: str, more: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" {more}>{html.escape(words)}</text>'


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.3g}%"
    return f"{value:.3g}{'x' if unit == 'x' else ' s'}"


def _powers(low: float, high: float) -> list[float]:
    """1, 2, 5 and 10 times the powers of ten between the two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def _ticks(high: float) -> list[float]:
    """Round numbers, about five, from 0 to high."""
    power = 10 ** math.floor(math.log10(high / 5))
    step = next(power * m for m in (1, 2, 5, 10) if high / (power * m) <= 6)
    return [round(i * step, 10) for i in range(math.floor(high / step) + 1)]
