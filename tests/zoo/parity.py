"""Prints the parity table: every case against the installed transformers. With the parity extra: `python
tests/zoo/parity.py`.

error: the largest difference of a logit, relative to the standard deviation of the logits, float32 against float32.
float64: by how much transformers' own logits change, on that scale, when it computes in float64 where it can.
greedy: how many tokens of greedy generation are the same, of those that no tie of the two best logits decides.
round trip: Hugging Face -> archzoo -> Hugging Face: equal in every bit of every tensor and in every config field.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import agreement
import numpy as np
import reference
from cases import CASES, NEW, PROMPT, TOLERANCE, Case, tolerance

from archzoo import load_hf


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


def main() -> int:
    """0 if every line holds, 1 otherwise."""
    print(f"transformers {reference.library().__version__}; an error below {TOLERANCE:.0e} or 4 x float64 passes")
    print(f"\n{HEAD}")
    failed = 0
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(case, Path(folder))
        failed += not row.holds()
        print(row, flush=True)
    print(f"\n{len(CASES) - failed} of {len(CASES)} cases agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
