"""Greedy tokens a second against transformers' generate: python benchmarks/decode.py [--models llama ...]

Float32, random prompts of 64 tokens, 128 new ones, which nothing stops; a run is one call, prefill and all. The models
are those of train.py (models.py). transformers runs the fastest of its ways (which cache, which experts, compiled or
not, which malloc), which the table names; seconds of the first call, with its compilation, are beside.

A last row for each batch says what part of the memory bandwidth, measured in turn with the runs, is what a step must
read at least: the weights that its tokens use, and the cache."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

from harness import (
    ENVIRONMENT,
    PLAIN,
    Row,
    SideError,
    Worker,
    arguments,
    compiler_cache,
    fastest,
    interleave,
    parsed,
    records,
    report,
    spread,
    versus,
)
from models import MODELS, is_moe

BATCHES = (1, 8)
PROMPT, NEW = 64, 128
DENSE_WAYS: dict[str, dict[str, Any]] = {
    "dynamic cache": {},
    "static cache": {"cache": "static"},
    "dynamic cache, compiled": {"compile": True},
    "static cache, compiled": {"cache": "static", "compile": True},
}
MOE_WAYS = {
    f"{experts}, {cache}": {"experts": experts} | more
    for experts in ("eager", "grouped_mm", "batched_mm")
    for cache, more in DENSE_WAYS.items()
    if cache in ("dynamic cache", "static cache, compiled")
}
BANDWIDTH = 0.6


def main() -> None:
    parser = arguments(__doc__, MODELS, ("transformers",))
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    options = parsed(parser)
    with compiler_cache():
        rows = (row for name in options.models for size in options.batches for row in compare(name, size, options))
        report("decode", "Greedy decoding, tokens a second", rows, keep=not options.quick)


def compare(model: str, batch: int, options: Any) -> Iterator[Row]:
    task = {"what": "decode", "config": MODELS[model], "batch": batch, "length": PROMPT, "new": NEW}
    name = f"{model}, batch {batch}"
    with ExitStack() as stack:
        sides: dict[str, Any] = {"archzoo": stack.enter_context(closing(Worker("side_archzoo.py", task)))}
        if "transformers" in options.peers:
            try:
                ways = MOE_WAYS if is_moe(model) else DENSE_WAYS
                mallocs = {"": ENVIRONMENT, "plain malloc": PLAIN}
                chosen = fastest("side_transformers.py", task, ways, options.python_transformers, mallocs)
                sides["transformers"] = chosen
                stack.callback(chosen.worker.close)
            except SideError as error:
                failed = {"transformers": {"log": error.log}}
                yield Row(name, against="transformers", failed=str(error), sides=failed)
        sides["read"] = stack.enter_context(closing(Worker("side_machine.py", {"what": "read"})))
        seconds = interleave({side: getattr(held, "worker", held) for side, held in sides.items()}, options.pairs)
        if "transformers" in sides:
            row = versus(name, sides, seconds, "transformers", 6.0 if is_moe(model) and batch == 1 else 3.0)
            row.ours += f", first {sides['archzoo'].facts['first_seconds']:.1f} s"
            row.theirs += f", first {sides['transformers'].first_seconds:.1f} s"
            yield row
        yield bandwidth(name, sides, seconds, BANDWIDTH if batch == 1 else None)


def bandwidth(name: str, sides: dict[str, Any], seconds: dict[str, list[float]], least: float | None) -> Row:
    """The bytes that steps must read a second over the best read's."""
    ours, machine = sides["archzoo"], sides["read"]
    rates = [NEW * ours.facts["read"] / s for s in seconds["archzoo"]]
    best = machine.facts["work"] / min(seconds["read"])
    return Row(
        name=f"{name}, bandwidth",
        values=[rate / best for rate in rates],
        unit="%",
        target=least,
        ours=f"{spread([rate / 1e9 for rate in rates])} GB/s",
        against=f"the best, {machine.facts['form']}",
        theirs=f"{best / 1e9:.1f} GB/s",
        sides=records(sides, seconds, "archzoo", "read"),
    )


if __name__ == "__main__":
    main()
