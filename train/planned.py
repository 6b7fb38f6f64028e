"""Plans (plan.py) for people: one as a page of text, a search as a table and as a picture of memory against time."""

import html
import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 440, 64, 24, 68, 52
INK, FAINT, FITS, NOT = "#333333", "#dddddd", "#7fa8d1", "#c2410c"

Plan = dict[str, Any]


def mesh_of(plan: Plan) -> str:
    return ",".join(f"{axis}={size}" for axis, size in plan["mesh"].items())


def _gb(amount: float) -> str:
    return f"{amount / 1e9:,.1f} GB"


def _short(plan: Plan) -> str:
    return f"{mesh_of(plan)} {plan['remat']}, {plan['accumulate']} parts"


def page(name: str, plan: Plan) -> str:
    """One plan of training as text: memory, collectives, time."""
    held, memory, estimates = plan["bytes"], plan["memory"], plan["estimates"]
    spare = memory - held["peak"]
    how = (
        f"compiled in {plan['compile_seconds']:.1f} s, program {plan['hlo_sha256'][:12]}"
        if plan["compiled"]
        else "arithmetic, nothing compiled"
    )
    lines = [
        f"{name} on {plan['nodes']} x {plan['instance']}: {plan['devices']} devices, mesh {mesh_of(plan)}",
        f"batch {plan['batch']:,} x {plan['length']:,} tokens in {plan['accumulate']} parts, remat {plan['remat']}",
        how,
        "",
        f"memory a device: {_gb(held['peak'])} of {_gb(memory)}: "
        + (f"fits, {_gb(spare)} to spare" if plan["fits"] else f"does not fit, {_gb(-spare)} too many"),
        f"  parameters {_gb(held['params'])}, optimizer {_gb(held['optimizer'])}, "
        f"gradients, activations and temporaries {_gb(held['temp'])}"
        + (f" (arithmetic said {_gb(plan['predicted_bytes']['peak'])} in all)" if plan["compiled"] else ""),
        "",
        f"collectives a step and device ({'of the compiled program' if plan['compiled'] else 'by arithmetic'}):",
    ]
    for row in plan["collectives"]:
        doubt = "" if row["certain"] else "  (in a loop of unknown length, counted once)"
        among = f"among {row['devices']} by {row['link']}"
        lines.append(f"  {row['kind']:18} {row['count']:>7,} times {_gb(row['bytes']):>14}  {among}{doubt}")
    if not plan["collectives"]:
        lines.append("  none")
    busy = {name: value for name, value in estimates["seconds"].items() if name not in ("least", "most")}
    lines += ["", f"estimates, of published peaks ({plan['flops'] / 1e12:,.1f} TFLOP a device and step):"]
    lines += ["  busy: " + ", ".join(f"{name} {value:.3g} s" for name, value in busy.items())]
    lines += [_speed(estimates)]
    return "\n".join(lines)


def _speed(estimates: Plan) -> str:
    least, most = estimates["seconds"]["least"], estimates["seconds"].get("most")
    until = "" if most is None else f", {most:.3g} s if nothing overlaps"
    usd = estimates["usd_per_billion_tokens"]
    mfu = estimates.get("mfu_ceiling")
    return (
        f"  a step: at least {least:.3g} s, bound by {estimates['bound']}{until}\n"
        f"  at most {estimates['tokens_per_second']:,.0f} tokens/s"
        + ("" if mfu is None else f", MFU {mfu:.0%}")
        + ("; no price is known" if usd is None else f"; at least {usd:,.2f} USD a billion tokens, on demand")
    )


def decode_page(name: str, plan: Plan) -> str:
    """One plan of decoding as text."""
    held, memory = plan["bytes"], plan["memory"]
    return "\n".join(
        [
            f"{name} decoding on {plan['instance']}: {plan['devices']} devices; arithmetic, nothing compiled",
            f"{plan['batch']:,} rows of {plan['length']:,} tokens",
            f"memory a device: weights {_gb(held['params'])}, caches {_gb(held['cache'])} of {_gb(memory)}: "
            + ("fits" if plan["fits"] else f"does not fit, {_gb(held['peak'] - memory)} too many"),
            _speed(plan["estimates"]),
        ]
    )


COLUMNS = ("", "mesh", "remat", "parts", "peak GB", "fits", "step s", "bound", "tokens/s", "by arithmetic")


def rows(plans: Sequence[Plan]) -> list[list[str]]:
    """A search as lines of COLUMNS."""
    return [
        [
            str(i),
            mesh_of(plan),
            plan["remat"],
            str(plan["accumulate"]),
            f"{plan['bytes']['peak'] / 1e9:,.1f}",
            "yes" if plan["fits"] else "no",
            f"{plan['estimates']['seconds']['least']:.3g}",
            plan["estimates"]["bound"],
            f"{plan['estimates']['tokens_per_second']:,.0f}",
            f"#{plan['predicted_rank']}, {plan['predicted_bytes']['peak'] / 1e9:,.1f} GB",
        ]
        for i, plan in enumerate(plans, start=1)
    ]


def picture(title: str, plans: Sequence[Plan]) -> str:
    """SVG text: each plan at its memory (across, GB a device) and its step (up, seconds at least, logarithmic), the
    memory there is as a dashed line. Raises ValueError when there is nothing to draw."""
    if not plans:
        raise ValueError("a picture of a search needs at least one plan")
    limit: float = plans[0]["memory"] / 1e9
    memory: list[float] = [plan["bytes"]["peak"] / 1e9 for plan in plans]
    times: list[float] = [plan["estimates"]["seconds"]["least"] for plan in plans]
    right = 1.05 * max(*memory, limit)
    low, high = math.log10(min(times)) - 0.1, math.log10(max(times)) + 0.1

    def across(gigabytes: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * gigabytes / right

    def up(seconds: float) -> float:
        y: float = TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(seconds)) / (high - low)
        return y

    def text(x: float, y: float, words: str, more: str = "") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" {more}>{html.escape(words)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(LEFT, 28, title, 'font-size="16" font-weight="600"'),
        text(16, TOP - 14, "seconds a step, at least"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "GB a device", 'text-anchor="middle"'),
    ]
    for i in range(5):
        seconds, gigabytes = 10 ** (low + (high - low) * i / 4), right * i / 4
        parts.append(f'<path d="M{LEFT} {up(seconds):.1f}H{WIDTH - RIGHT}" stroke="{FAINT}"/>')
        parts.append(text(LEFT - 8, up(seconds) + 4, f"{seconds:.3g}", 'text-anchor="end"'))
        parts.append(text(across(gigabytes), HEIGHT - BOTTOM + 20, f"{gigabytes:.0f}", 'text-anchor="middle"'))
    x = f"{across(limit):.1f}"
    parts.append(f'<path d="M{x} {TOP}V{HEIGHT - BOTTOM}" stroke="{INK}" stroke-dasharray="4 4"/>')
    parts.append(text(across(limit) - 6, TOP + 12, "memory", 'text-anchor="end"'))
    for plan, gigabytes, seconds in zip(plans, memory, times, strict=True):
        colour = FITS if plan["fits"] else NOT
        parts.append(
            f'<circle cx="{across(gigabytes):.1f}" cy="{up(seconds):.1f}" r="5" fill="{colour}">'
            f"<title>{html.escape(_short(plan))}</title></circle>"
        )
    best = plans[0]
    parts.append(text(across(memory[0]) + 9, up(times[0]) + 4, mesh_of(best)))
    return "\n".join([*parts, "</svg>"]) + "\n"
