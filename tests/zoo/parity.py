"""Prints the parity table, every case against the installed transformers, and writes its summary, docs/parity.md.

With the parity extra: `python tests/zoo/parity.py`, or of some families `python tests/zoo/parity.py llama gemma2`:
the other lines of the summary stay, if they were measured with the same versions.

error: the largest difference of a logit, relative to the standard deviation of the logits, float32 against float32.
float64: by how much transformers' own logits change, on that scale, when it computes in float64 where it can.
greedy: how many tokens of greedy generation are the same, of those that no tie of the two best logits decides.
round trip: Hugging Face -> archzoo -> Hugging Face: equal in every bit of every tensor and in every config field.
"""

import inspect
import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import agreement
import numpy as np
import reference
from cases import CASES, NEW, PROMPT, TOLERANCE, Case, tolerance

from archzoo import load_hf
from archzoo.zoo.registry import FAMILIES

SUMMARY = Path(__file__).parents[2] / "docs" / "parity.md"


class Row(NamedTuple):
    """A line of the table."""

    family: str
    case: str
    error: float
    float64: float
    greedy: agreement.Greedy
    changed: list[str]

    def holds(self) -> bool:
        return self.error < tolerance(self.float64) and self.greedy.agreed == self.greedy.asked and not self.changed

    def __str__(self) -> str:
        trip = f"{len(self.changed)} differ: {self.changed[0]}" if self.changed else "equal"
        greedy = f"{self.greedy.agreed}/{self.greedy.asked}"
        return f"{self.family:<12} {self.case:<34} {self.error:>9.1e} {self.float64:>9.1e} {greedy:>7}  {trip}"


HEAD = f"{'family':<12} {'case':<34} {'error':>9} {'float64':>9} {'greedy':>7}  round trip"


def measure(case: Case, folder: Path) -> Row:
    tokens = case.tokens()
    case.write(folder / "theirs", reference.published_shapes(case.config))
    model = reference.load(folder / "theirs")
    logits = reference.logits(model, tokens)
    exact = reference.logits(reference.load(folder / "theirs", "float64"), tokens)
    best, margins = reference.greedy(model, tokens[:, :PROMPT], NEW)
    spec, params = load_hf(folder / "theirs")
    return Row(
        family=case.family,
        case=case.name.removeprefix(case.family.removesuffix("_text")).strip("_"),
        error=agreement.error(agreement.logits(spec, params, tokens), logits),
        float64=agreement.error(exact, logits),
        greedy=agreement.greedy(spec, params, tokens[:, :PROMPT], best, margins, TOLERANCE * float(np.std(logits))),
        changed=agreement.round_trip(folder / "theirs", folder / "ours"),
    )


# --- the summary ------------------------------------------------------------------------------------------------------

ABOUT = f"""# Parity

Every family against `transformers`, on tiny random models that between them use each variant it publishes: written by
`make parity`, which prints all cases (`tests/zoo/cases/`). Measured on a CPU in float32, with {{versions}}.

- error: of the case nearest to its tolerance, the largest difference of a logit, relative to the standard deviation of
  the logits.
- tolerance: {TOLERANCE:.0e}, or four times what transformers' own logits change by when it computes in float64.
- greedy: tokens of greedy generation that are the same, of those that no tie of the two best logits decides.
- round trip: Hugging Face to archzoo to Hugging Face, every bit of every tensor and every field of the config.
- lines: of the family's page that are neither empty nor comment, docstrings included; some pages hold two families.

"""
COLUMNS = ("family", "lines", "cases", "worst case", "error", "tolerance", "greedy", "round trip")


def versions() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch", "jax", "flax"))
    return f"{libraries} and Python {platform.python_version()}"


def line(family: str, rows: Sequence[Row]) -> str:
    """The summary of a family's cases: the worst of them, and sums."""
    worst = max(rows, key=lambda row: row.error / tolerance(row.float64))
    greedy = f"{sum(row.greedy.agreed for row in rows)}/{sum(row.greedy.asked for row in rows)}"
    changed = sum(bool(row.changed) for row in rows)
    page = inspect.getsourcefile(FAMILIES[family].read)
    assert page is not None
    code = [text for text in Path(page).read_text().splitlines() if text.strip() and not text.strip().startswith("#")]
    cells = (
        f"[{family}](../zoo/{Path(page).name})",
        str(len(code)),
        str(len(rows)),
        worst.case or "plain",
        f"{worst.error:.1e}",
        f"{tolerance(worst.float64):.1e}",
        greedy,
        f"{changed} differ" if changed else "equal",
    )
    return f"| {' | '.join(cells)} |"


def summary(rows: Sequence[Row], held: str) -> str:
    """The text of docs/parity.md: a line for each family in `rows`, the others as in `held`, what it said before."""
    about = ABOUT.format(versions=versions())
    kept = re.findall(r"^(\| \[(\w+)\].*)$", held, re.MULTILINE) if held.startswith(about) else []
    lines = {family: text for text, family in kept}
    for family in dict.fromkeys(row.family for row in rows):
        lines[family] = line(family, [row for row in rows if row.family == family])
    table = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    return about + "\n".join([*table, *(lines[family] for family in FAMILIES if family in lines)]) + "\n"


def main(families: Sequence[str]) -> int:
    """0 if every line holds, 1 otherwise."""
    unknown = set(families) - {case.family for case in CASES}
    if unknown:
        raise SystemExit(f"no case is of {', '.join(sorted(unknown))}; families: {', '.join(FAMILIES)}")
    cases = [case for case in CASES if not families or case.family in families]
    print(f"{versions()}; an error below {TOLERANCE:.0e} or 4 x float64 passes")
    print(f"\n{HEAD}")
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(case, Path(folder)))
        print(rows[-1], flush=True)
    SUMMARY.write_text(summary(rows, SUMMARY.read_text() if SUMMARY.exists() else ""))
    failed = sum(not row.holds() for row in rows)
    print(f"\n{len(rows) - failed} of {len(rows)} cases agree; {SUMMARY}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
