"""What experts cost, forward and backward, float32: python benchmarks/experts.py

groups: rows in uneven groups, each row times its group's matrix [256, 256]: the library's (layers/grouped.py, sorting
and gathering included) against jax.lax.ragged_dot of 4,096 rows sorted beforehand, and against one dense product of
32,768. layer: a mixture-of-experts layer on 8,192 tokens, of 256 experts over 8, each token through 4."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

from harness import Row, Worker, arguments, interleave, parsed, records, report, spread

WIDTH = 256
ROWS, FEWER = 32768, 4096
"""Against a dense product, and against ragged_dot, which would need 60 GB for 32,768 rows of 256 groups."""

GROUPS = {8: 2.0, 64: 6.0, 256: 20.0}
"""How many groups, and how many times as fast as ragged_dot."""

MOST_OVER_DENSE = 1.4
TOKENS = 8192
FEW, MANY, MOST = 8, 256, 1.5


def main() -> None:
    options = parsed(arguments(__doc__))
    report("experts", "What experts cost", rows(options), keep=not options.quick)


def rows(options: Any) -> Iterator[Row]:
    for groups, least in GROUPS.items():
        task = {"what": "grouped", "width": WIDTH, "groups": groups, "repeats": 4}
        few = {way: task | {"way": way, "rows": FEWER} for way in ("ragged_dot", "archzoo")}
        yield over(f"{groups} groups: rows a second over ragged_dot's", few, options.pairs, least)
        many = {way: task | {"way": way, "rows": ROWS} for way in ("archzoo", "dense")}
        yield over(
            f"{groups} groups: time over one dense product's", many, options.pairs, MOST_OVER_DENSE, at_most=True
        )
    task = {"what": "moe", "tokens": TOKENS, "width": WIDTH, "ffn": WIDTH, "top_k": 4}
    sides = {f"{count} experts": task | {"experts": count} for count in (MANY, FEW)}
    yield over(f"a layer's time, {MANY} experts over {FEW}", sides, options.pairs, MOST, at_most=True)


def over(name: str, tasks: dict[str, dict[str, Any]], pairs: int, target: float, at_most: bool = False) -> Row:
    """Seconds a token of the first side over those of the second."""
    with ExitStack() as stack:
        sides = {key: stack.enter_context(closing(Worker("side_archzoo.py", task))) for key, task in tasks.items()}
        seconds = interleave(sides, pairs)
        each = {key: [s / side.facts["tokens"] for s in seconds[key]] for key, side in sides.items()}
        first, second = each
        shown = {key: spread([1e6 * s for s in values]) + " us a row" for key, values in each.items()}
        us, other = (second, first) if "archzoo" in second else (first, second)
        return Row(
            name=name,
            values=[a / b for a, b in zip(each[first], each[second], strict=True)],
            target=target,
            at_most=at_most,
            ours=shown[us],
            against=other,
            theirs=shown[other],
            sides=records(sides, seconds, first, second),
        )


if __name__ == "__main__":
    main()
