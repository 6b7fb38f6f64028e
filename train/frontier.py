"""A search over plans (plan.py) as a picture: memory against time, and the plans that no other beats in both."""

import html
import math
from collections.abc import Sequence
from typing import Any

from .curve import BOTTOM, FAINT, HEIGHT, INK, LEFT, RIGHT, TOP, WIDTH, opening, text, ticks

FITS, NOT = "#3b6ea5", "#c2410c"
LABELS, APART, LETTER = 5, 17, 7.5
"""How many plans are named at most, how far apart, and how wide a letter is, in pixels."""

MARKS = (1, 1.5, 2, 3, 5, 7)

Plan = dict[str, Any]


def mesh_of(plan: Plan) -> str:
    return ",".join(f"{axis}={size}" for axis, size in plan["mesh"].items())


def frontier(plans: Sequence[Plan]) -> list[Plan]:
    """Those that none other beats: any that takes less memory takes more time. The fastest first."""
    best: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan["estimates"]["seconds"]["least"], plan["bytes"]["peak"])):
        if not best or plan["bytes"]["peak"] < best[-1]["bytes"]["peak"]:
            best.append(plan)
    return best


def picture(title: str, plans: Sequence[Plan]) -> str:
    """SVG text: each plan at its memory (across, GB a device) and its step (up, seconds, logarithmic): a dot at least,
    a line to most; joined and named are the plans of the frontier. The memory there is is a dashed line.

    Raises ValueError when there is nothing to draw."""
    if not plans:
        raise ValueError("a picture of a search needs at least one plan")
    limit: float = plans[0]["memory"] / 1e9
    right: float = 1.05 * max(limit, *(plan["bytes"]["peak"] / 1e9 for plan in plans))
    times = [plan["estimates"]["seconds"] for plan in plans]
    low: float = 0.9 * min(time["least"] for time in times)
    high: float = 1.1 * max(time["most"] for time in times)

    def across(gigabytes: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * gigabytes / right

    def up(seconds: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * math.log(high / seconds) / math.log(high / low)

    def place(plan: Plan, of: str = "least") -> tuple[float, float]:
        return across(plan["bytes"]["peak"] / 1e9), up(plan["estimates"]["seconds"][of])

    parts = [
        *opening(title),
        text(16, TOP - 14, "seconds a step: at least (dot), at most if nothing overlaps (line)"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "GB a device, as compiled", 'text-anchor="middle"'),
    ]
    for seconds in round_values(low, high):
        parts.append(f'<path d="M{LEFT} {up(seconds):.1f}H{WIDTH - RIGHT}" stroke="{FAINT}"/>')
        parts.append(text(LEFT - 8, up(seconds) + 4, f"{seconds:g}", 'text-anchor="end"'))
    for gigabytes in (tick for tick in ticks(0, right) if tick <= right):
        parts.append(text(across(gigabytes), HEIGHT - BOTTOM + 20, f"{gigabytes:g}", 'text-anchor="middle"'))
    x = f"{across(limit):.1f}"
    parts.append(f'<path d="M{x} {TOP}V{HEIGHT - BOTTOM}" stroke="{INK}" stroke-dasharray="4 4"/>')
    parts.append(text(across(limit) - 6, TOP + 12, "memory", 'text-anchor="end"'))
    best = frontier(plans)
    joined = " ".join("{:.1f},{:.1f}".format(*place(plan)) for plan in best)
    parts.append(f'<polyline points="{joined}" fill="none" stroke="{FITS}" stroke-opacity="0.5" stroke-width="2"/>')
    for plan in plans:
        (x0, y0), (_, y1), colour = place(plan), place(plan, "most"), FITS if plan["fits"] else NOT
        words = f"{mesh_of(plan)} {plan['remat']}, {plan['accumulate']} parts"
        parts.append(f'<path d="M{x0:.1f} {y0:.1f}V{y1:.1f}" stroke="{colour}" stroke-opacity="0.35"/>')
        parts.append(
            f'<circle cx="{x0:.1f}" cy="{y0:.1f}" r="4.5" fill="{colour}"><title>{html.escape(words)}</title></circle>'
        )
    free = HEIGHT - BOTTOM - 6.0
    for plan in best[:LABELS]:  # below and left of the frontier there is nothing; its fastest plan is its lowest
        (x0, y0), words = place(plan), f"{mesh_of(plan)} {plan['remat']}"
        fits = x0 - 9 - LETTER * len(words) > LEFT
        y = min(y0 + (4 if fits else 20), free)
        parts.append(text(x0 - 9 if fits else LEFT + 6, y, words, 'text-anchor="end"' if fits else ""))
        free = y - APART
    return "\n".join([*parts, "</svg>"]) + "\n"


def round_values(low: float, high: float) -> list[float]:
    """Of MARKS times powers of ten, those between; where that is only one or none, evenly spaced round ones."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**power for power in powers for m in MARKS if low <= m * 10.0**power <= high]
    return found if len(found) > 1 else [tick for tick in ticks(low, high) if low <= tick <= high]
