"""The loss over a large vocabulary against all logits at once: python benchmarks/loss.py [--width 512]

Cross entropy of 4,096 tokens over 131,072 words with its gradients by hidden states and head, float32, compiled: the
library's (train/loss.py) and log_softmax of the whole matrix of logits. Temporaries are what XLA says it allocates."""

import math
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from harness import Row, Worker, arguments, interleave, parsed, records, report, spread

TOKENS, VOCAB = 4096, 131072


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=512)
    options = parsed(parser)
    report("loss", "Loss over 131,072 words, 4,096 tokens", rows(options), keep=not options.quick)


def rows(options: Any) -> Iterator[Row]:
    task = {"what": "loss", "tokens": TOKENS, "width": options.width, "vocab": VOCAB}
    with (
        closing(Worker("side_archzoo.py", task | {"full": False})) as chunked,
        closing(Worker("side_archzoo.py", task | {"full": True})) as full,
    ):
        if not math.isclose(chunked.facts["loss"], full.facts["loss"], rel_tol=1e-5):
            raise SystemExit(f"the losses differ: {chunked.facts['loss']} and {full.facts['loss']}")
        sides = {"archzoo": chunked, "all logits": full}
        ours, theirs = chunked.facts["temporaries"], full.facts["temporaries"]
        yield Row(
            name=f"width {options.width}: temporary bytes",
            values=[ours / theirs],
            unit="%",
            target=0.15,
            at_most=True,
            ours=f"{ours / 1e6:,.0f} MB",
            against=f"all logits, of {full.facts['logits'] / 1e6:,.0f} MB",
            theirs=f"{theirs / 1e6:,.0f} MB",
        )
        seconds = interleave(sides, options.pairs)
        yield Row(
            name=f"width {options.width}: time",
            values=[a / b for a, b in zip(seconds["archzoo"], seconds["all logits"], strict=True)],
            target=1.1,
            at_most=True,
            ours=f"{spread(seconds['archzoo'])} s",
            against="all logits",
            theirs=f"{spread(seconds['all logits'])} s",
            sides=records(sides, seconds, *sides),
        )


if __name__ == "__main__":
    main()
