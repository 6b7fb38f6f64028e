"""Writes goldens/: what transformers makes of every case. After a change of cases/: `python tests/zoo/write_goldens.py
[family ...]`.

A golden is a JSON file: the config, the names and shapes of the tensors of the published checkpoint, and what the
reference gives for the case's tokens: logits (float32, base64), greedy tokens and the margins by which they won, and by
how much its own logits change when it computes in float64 where it can. The weights are not stored: they follow from
their names.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import reference
from cases import CASES, GOLDENS, NEW, PROMPT, Case


def golden(case: Case) -> dict[str, object]:
    shapes, tokens = reference.published_shapes(case.config), case.tokens()
    with tempfile.TemporaryDirectory() as folder:
        case.write(Path(folder), shapes)
        model, exact = reference.load(Path(folder)), reference.load(Path(folder), "float64")
    logits = reference.logits(model, tokens)
    greedy, margins = reference.greedy(model, tokens[:, :PROMPT], NEW)
    return {
        "transformers": reference.library().__version__,
        "config": case.config,
        "tensors": {name: list(shape) for name, shape in shapes.items()},
        "tokens": tokens.tolist(),
        "greedy": greedy.tolist(),
        "margins": [[round(float(margin), 6) for margin in row] for row in margins],
        "float64_difference": float(np.max(np.abs(reference.logits(exact, tokens) - logits)) / np.std(logits)),
        "logits": base64.b64encode(logits.astype("<f4").tobytes()).decode(),
    }


def main() -> None:
    GOLDENS.mkdir(exist_ok=True)
    for stale in {path.stem for path in GOLDENS.glob("*.json")} - {case.name for case in CASES}:
        (GOLDENS / f"{stale}.json").unlink()
    for case in CASES:
        if sys.argv[1:] and case.family not in sys.argv[1:]:
            continue
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden(case).items()]
        (GOLDENS / f"{case.name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{case.name}: {lines[-2]}")


if __name__ == "__main__":
    main()
