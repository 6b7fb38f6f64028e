"""Plans (plan.py) for people: one as a page of text, a search as a table (as a picture: frontier.py)."""

from collections.abc import Sequence
from typing import Any

from .frontier import mesh_of

Plan = dict[str, Any]


def _gb(amount: float) -> str:
    return f"{amount / 1e9:,.1f} GB" if abs(amount) >= 1e8 else f"{amount / 1e6:,.1f} MB"


def _parts(count: int) -> str:
    return f"{count} part{'' if count == 1 else 's'}"


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
        f"{name} on {plan['nodes']} x {plan['instance']}: {plan['devices']} devices, mesh {mesh_of(plan)}"
        + (f"; {plan['idle']} devices stay idle" if plan["idle"] else ""),
        f"batch {plan['batch']:,} x {plan['length']:,} tokens in {_parts(plan['accumulate'])}, remat {plan['remat']}"
        + (f"; stages of the pipeline are idle {plan['bubble']:.0%} of the time" if plan["bubble"] else ""),
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
    busy = {name: value for name, value in estimates["seconds"].items() if name not in ("least", "most", "expected")}
    lines += ["", f"estimates, of published peaks ({plan['flops'] / 1e12:,.1f} TFLOP a device and step):"]
    lines += ["  busy: " + ", ".join(f"{name} {value:.3g} s" for name, value in busy.items())]
    lines += [_speed(estimates)]
    return "\n".join(lines)


def _speed(estimates: Plan) -> str:
    least, most = estimates["seconds"]["least"], estimates["seconds"].get("most")
    until = "" if most is None else f", {most:.3g} s if nothing overlaps"
    if "expected" in estimates["seconds"]:
        until += f"; CPUs take about {estimates['seconds']['expected']:.3g} s"
    usd = estimates["usd_per_billion_tokens"]
    mfu = estimates.get("mfu_ceiling")
    return (
        f"  a step: at least {least:.3g} s, bound by {estimates['bound']}{until}\n"
        f"  at most {estimates['tokens_per_second']:,.0f} tokens/s"
        + ("" if mfu is None else f", MFU {mfu:.0%}")
        + ("; no price is known" if usd is None else f"; at least {usd:,.2f} USD a billion tokens")
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
            f"{plan['estimates']['seconds']['least']:.3g} to {plan['estimates']['seconds']['most']:.3g}",
            plan["estimates"]["bound"],
            f"{plan['estimates']['tokens_per_second']:,.0f}",
            f"#{plan['predicted_rank']}, {plan['predicted_bytes']['peak'] / 1e9:,.1f} GB",
        ]
        for i, plan in enumerate(plans, start=1)
    ]
