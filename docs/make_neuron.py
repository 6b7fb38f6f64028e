"""Writes docs/neuron.md, what the Neuron check finds in every family: `python docs/make_neuron.py [MODEL ...]`.

By default, of each family the preset with the fewest parameters; nothing is compiled, and no device is needed.
"""

import contextlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from archzoo.cli import main
from archzoo.zoo.registry import MODELS

PAGE = Path(__file__).with_name("neuron.md")
HEAD = """# What the Neuron check finds

Written by `python docs/make_neuron.py`, which runs `archzoo check` on {count} presets, {choice}.

`archzoo check MODEL` lowers a model's programs for AWS Trainium on any machine and holds their operations against a
table of what the Neuron compiler refuses (`sharding/checking.py`). It is {proxy}. A warning is what compilers accept so
far. The programs, at {sizes}: a state's initialisation, a training step (Muon), prefill, decoding by the likeliest
token, and by sampling.

"""


def checked(name: str) -> dict[str, Any]:
    """What `archzoo check NAME --json` says."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(io.StringIO()):
        main(["check", name, "--json"])
    found: dict[str, Any] = json.loads(told.getvalue())
    return found


def together(names: Sequence[str]) -> dict[str, Any]:
    """The same of several models."""
    found: dict[str, Any] = {"models": []}
    for name in names:
        print(name, file=sys.stderr, flush=True)
        of_one = checked(name)
        found = {**of_one, "models": [*found["models"], *of_one["models"]]}
        jax.clear_caches()
    return found


def smallest() -> list[str]:
    """The preset of each family that has the fewest parameters, as its depth and width tell."""
    families: dict[str, list[str]] = {}
    for name, spec in MODELS.items():
        assert spec.hf is not None
        families.setdefault(spec.hf.family, []).append(name)
    return [min(names, key=lambda name: MODELS[name].depth * MODELS[name].width) for names in families.values()]


def page(found: Mapping[str, Any], choice: str) -> str:
    models = found["models"]
    programs = list(dict.fromkeys(program for model in models for program in model["programs"]))
    lines = [["model", "family", *programs], ["---"] * (2 + len(programs))]
    told: dict[str, None] = {}
    for model in models:
        origin = MODELS[model["model"]].hf
        cells = []
        for program in programs:
            each = model["programs"][program]
            errors = [finding for finding in each if finding["severity"] == "error"]
            codes = ", ".join(dict.fromkeys(finding["code"] for finding in errors))
            warned = sorted({finding["code"] for finding in each} - {finding["code"] for finding in errors})
            cells.append(f"refused: {codes}" if errors else f"passes ({', '.join(warned)})" if warned else "passes")
            told |= {f"- {finding['code']}: {finding['remedy']}.": None for finding in each}
        lines.append([model["model"], origin.family if origin else "", *cells])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    sizes = "64 rows of 128 tokens, in bfloat16"
    head = HEAD.format(count=len(models), choice=choice, proxy=found["note"], sizes=sizes)
    return head + table + ("\nWhat was found:\n\n" + "\n".join(told) + "\n" if told else "")


if __name__ == "__main__":
    given = sys.argv[1:]
    text = page(together(given or smallest()), "those named" if given else "the smallest of each family")
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)
