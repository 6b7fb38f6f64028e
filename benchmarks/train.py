"""Tokens a second of a train step against its peers: python benchmarks/train.py [--models llama ...] [--peers ...]

Float32, AdamW, clipped gradients, the same configs (models.py), batch and threads for every side. transformers runs
the fastest of its ways (which attention, which experts, eager or compiled; with the malloc that the other sides have
or with the plain one), which the table names. EasyDeL and MaxText are XLA as archzoo is and have its environment.

A last row for each model says what part of the machine's best float32 matmul rate, measured in turn with the steps,
the model's FLOPs are: 6 a multiply-add of weights that a token uses, and those of attention."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from harness import (
    ENVIRONMENT,
    PLAIN,
    Chosen,
    Row,
    SideError,
    Worker,
    arguments,
    compiler_cache,
    fastest,
    interleave,
    parsed,
    rate,
    records,
    report,
    spread,
    versus,
)
from models import MODELS, is_moe


class Case(NamedTuple):
    """A model, its rows of tokens, and the peers it is compared with."""

    model: str
    batch: int
    length: int
    peers: tuple[str, ...]


PEERS = ("transformers", "easydel", "maxtext")
CASES = {model: Case(model, 4, 256, PEERS) for model in MODELS}
CASES["gemma3-4096"] = Case("gemma3", 1, 4096, ("transformers",))

DENSE_WAYS: dict[str, dict[str, Any]] = {"eager": {}, "compiled": {"compile": True}}
# batched_mm copies an expert's weights for every token: tens of gigabytes in training.
MOE_WAYS = {
    "eager, experts in a loop": {"experts": "eager"},
    "eager, grouped_mm": {"experts": "grouped_mm"},
    "compiled, grouped_mm": {"experts": "grouped_mm", "compile": True},
}
WINDOW_WAYS = {
    f"{attention}, {name}": {"attention": attention} | more
    for attention in ("sdpa", "eager", "flex_attention")
    for name, more in {"not compiled": {}, "compiled": {"compile": True}}.items()
}
DENSE, MOE = (1.05, 1.2), (1.4, 2.0)
XLA_DENSE, XLA_MOE = (1.2, None), (10.0, None)
WINDOW = (2.0, None)
MFU = {False: 0.8, True: 0.6}


def main() -> None:
    parser = arguments(__doc__, CASES, PEERS)
    parser.add_argument("--steps", type=int, default=2, help="of a run; EasyDeL and MaxText take one")
    options = parsed(parser)
    with compiler_cache():
        rows = (row for name in options.models for row in compare(name, options))
        report("train", "Training, tokens a second", rows, keep=not options.quick)


def compare(name: str, options: Any) -> Iterator[Row]:
    case = CASES[name]
    moe = is_moe(case.model)
    steps = 1 if case.length > 1024 else options.steps
    task = {"what": "train", "config": MODELS[case.model], "batch": case.batch, "length": case.length}
    with ExitStack() as stack:
        sides: dict[str, Any] = {}
        sides["archzoo"] = stack.enter_context(closing(Worker("side_archzoo.py", task | {"steps": steps})))
        for peer in [peer for peer in case.peers if peer in options.peers]:
            try:
                sides[peer] = start(peer, name, task | {"steps": steps if peer == "transformers" else 1}, options)
                stack.callback(sides[peer].worker.close)
            except SideError as error:
                yield Row(f"{name}, {peer}", against=peer, failed=str(error), sides={peer: {"log": error.log}})
        sides["matmul"] = stack.enter_context(closing(Worker("side_machine.py", {"what": "matmul"})))
        seconds = interleave({side: getattr(held, "worker", held) for side, held in sides.items()}, options.pairs)
        for peer in [peer for peer in case.peers if peer in sides]:
            yield versus(f"{name}, {peer}", sides, seconds, peer, *target(name, peer))
        if name in MODELS:
            yield utilisation(name, sides, seconds, MFU[moe])


def start(peer: str, name: str, task: dict[str, Any], options: Any) -> Chosen:
    """The peer's fastest way to take these steps."""
    python = getattr(options, f"python_{peer}")
    if peer != "transformers":
        return fastest(f"side_{peer}.py", task, {"": {}}, python)
    ways = MOE_WAYS if is_moe(CASES[name].model) else DENSE_WAYS if name in MODELS else WINDOW_WAYS
    return fastest("side_transformers.py", task, ways, python, {"": ENVIRONMENT, "plain malloc": PLAIN})


def target(name: str, peer: str) -> tuple[float, float | None]:
    """The ratio to reach, and the one to hope for."""
    if name not in MODELS:
        return WINDOW
    if peer == "transformers":
        return MOE if is_moe(name) else DENSE
    return XLA_MOE if is_moe(name) else XLA_DENSE


def utilisation(name: str, sides: dict[str, Any], seconds: dict[str, list[float]], least: float) -> Row:
    """The model's FLOPs a second over the best matmul's."""
    ours, machine = sides["archzoo"], sides["matmul"]
    rates = [ours.facts["flops"] * tokens for tokens in rate(ours, seconds["archzoo"])]
    best = machine.facts["work"] / min(seconds["matmul"])
    return Row(
        name=f"{name}, matmul rate",
        values=[rate / best for rate in rates],
        unit="%",
        target=least,
        ours=f"{spread([rate / 1e9 for rate in rates])} GFLOP/s",
        against=f"the best, {machine.facts['form']}",
        theirs=f"{best / 1e9:.0f} GFLOP/s",
        sides=records(sides, seconds, "archzoo", "matmul"),
    )


if __name__ == "__main__":
    main()
