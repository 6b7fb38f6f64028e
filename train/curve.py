"""A loss curve as a picture: an SVG drawn from a run's metrics, with nothing but the standard library."""

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 440, 64, 24, 68, 52
INK, FAINT, TRAIN, HELDOUT = "#333333", "#dddddd", "#7fa8d1", "#c2410c"

Points = Sequence[tuple[float, float]]


def loss_curve(title: str, train: Points, heldout: Points, unigram: float) -> str:
    """SVG text: training loss at each step, its running mean, held-out loss, and the unigram entropy as a dashed line.

    Points are (step, nats a token). Raises ValueError when there is nothing to draw.
    """
    if not train:
        raise ValueError("a loss curve needs at least one step")
    last = max(step for step, _ in train)
    values = [loss for _, loss in (*smoothed(train), *heldout)] + [unigram]
    low, high = ticks(min(values), max(values))[0], max(*values, train[0][1])
    marks = ticks(low, high)

    def at(step: float, loss: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (loss - low) / ((high - low) or 1))
        return f"{x:.1f},{min(max(y, TOP), HEIGHT - BOTTOM):.1f}"

    def line(points: Points, colour: str, more: str) -> str:
        joined = " ".join(at(*point) for point in points)
        return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-linejoin="round" {more}/>'

    parts = opening(title)
    for tick in marks:
        if low <= tick <= high:
            x, y = at(0, tick).split(",")
            parts.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="{FAINT}"/>')
            parts.append(text(LEFT - 8, float(y) + 4, f"{tick:g}", 'text-anchor="end"'))
    for tick in (t for t in ticks(0, last) if 0 <= t <= last):
        x = at(tick, low).split(",")[0]
        parts.append(text(float(x), HEIGHT - BOTTOM + 20, f"{tick:g}", 'text-anchor="middle"'))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "step", 'text-anchor="middle"'))
    parts.append(text(16, TOP - 14, "nats a token"))
    parts.append(line([(0, unigram), (last, unigram)], INK, 'stroke-dasharray="4 4"'))
    parts.append(text(WIDTH - RIGHT, float(at(0, unigram).split(",")[1]) - 6, "unigram entropy", 'text-anchor="end"'))
    parts.append(line(train, TRAIN, 'stroke-opacity="0.45"'))
    parts.append(line(smoothed(train), TRAIN, 'stroke-width="2.5"'))
    parts.append(line(heldout, HELDOUT, 'stroke-width="2"'))
    for point in heldout:
        x, y = at(*point).split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{HELDOUT}"/>')
    legend = [("training", TRAIN, train[-1][1])] + ([("held-out", HELDOUT, heldout[-1][1])] if heldout else [])
    for i, (name, colour, value) in enumerate(legend):
        left = WIDTH - RIGHT - 300 + 160 * i
        parts.append(f'<path d="M{left} 24h22" stroke="{colour}" stroke-width="3"/>')
        parts.append(text(left + 30, 28, f"{name} {value:.3f}"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def opening(title: str) -> list[str]:
    """The first parts of a picture, with its title."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(LEFT, 28, title, 'font-size="16" font-weight="600"'),
    ]


def text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" {more}>{html.escape(words)}</text>'


def smoothed(points: Points) -> list[tuple[float, float]]:
    """The mean over a window of a fortieth of the run behind each point."""
    window = max(len(points) // 40, 1)
    sums, total = [], 0.0
    for i, (step, value) in enumerate(points):
        total += value - (points[i - window][1] if i >= window else 0.0)
        sums.append((step, total / min(i + 1, window)))
    return sums


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, about five, from at or below low to at or above high."""
    span = (high - low) or 1.0
    power = 10 ** math.floor(math.log10(span / 5))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 6)
    first = math.floor(low / step)
    return [round((first + i) * step, 10) for i in range(math.ceil(high / step) - first + 1)]
