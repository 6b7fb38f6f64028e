"""A training run, from text to a checkpoint that anything can be made of: data, steps, progress, evaluation, and what
is left behind.

    OUT/checkpoints/    steps with the spec, the tokenizer, the data position and the settings (checkpoint.py)
        metrics.jsonl   a line a step
        loss.svg        the loss curve
        summary.json    what came out: held-out loss, tokens, seconds

Ctrl-C, or the SIGTERM of a scheduler, ends a run after the step in hand: it is saved and can be resumed, with losses
equal to the bit."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from ..layers.decoder import Spec
from ..layers.execution import Execution, new_key
from ..layers.pipeline import microbatches, stages
from ..layers.spec import from_plain, require, to_plain
from .checkpoint import Checkpoint, Saver, latest, restore
from .curve import loss_curve
from .data import Dataset, load
from .loss import Losses, default_losses
from .optimizer import Optimizer
from .placement import Placement, any_process, in_force, is_first, place, placed, shapes_on
from .step import State, init_state, make_eval, make_step, start_state
from .tokenizer import Tokenizer

QUICK_EVAL = 8
"""Batches of an evaluation during the run; the one at its end takes all."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train: plain data, saved with every checkpoint.

    mesh: how parameters and batch are spread over all devices, "fsdp=4,expert=2" or "auto" (sharding/mesh.py); "" for
    one device.  rules: the name of the table by which (sharding/rules.py).
    data: text sources (text.py), none for the standard library's own source.  tokenizer: bytes, bpe:SIZE or a path.
    length, batch: of a batch in tokens and rows; accumulate: in how many parts it is taken.
    losses: None for the architecture's usual ones.  bias_rate: of the routers' selection biases (step.py).
    evals: evaluations during the run.  saves: checkpoints during the run; keep: how many of them stay.
    """

    optimizer: Optimizer
    mesh: str = ""
    rules: str = "default"
    data: tuple[str, ...] = ()
    tokenizer: str = "bytes"
    length: int = 256
    batch: int = 8
    accumulate: int = 1
    seed: int = 0
    execution: Execution = Execution()
    losses: Losses | None = None
    bias_rate: float = 1e-3
    evals: int = 5
    saves: int = 2
    keep: int = 2

    def __post_init__(self) -> None:
        for field in ("length", "batch", "accumulate", "keep"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        for field in ("evals", "saves", "seed"):
            require(self, getattr(self, field) >= 0, field, "it cannot be negative")
        require(
            self, self.batch % self.accumulate == 0, "batch", f"it must be a multiple of accumulate, {self.accumulate}"
        )


class Interrupted(Exception):  # noqa: N818, as KeyboardInterrupt, it is no error
    """The run was asked to stop; it is saved."""


Report = Callable[[dict[str, Any]], None]


def train(
    spec: Spec,
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    params: Any = None,
    tokenizer: Tokenizer | None = None,
    resume: bool = False,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Trains to the last of `settings.optimizer.steps`, leaves the files above in `out`, and returns the summary.

    params: to start from, with their tokenizer; None initialises, and the vocabulary becomes the tokenizer's.
    resume: go on from the newest checkpoint in `out`, whose spec and settings should be those given (see
    `resumable`). report: is called with each metrics line, those of evaluations too.

    Under a mesh, parameters and optimizer are made, trained, saved and read in parts, each device its own. With several
    processes (placement.connect) all call this with the same arguments, and a folder that all see; the first writes.

    Raises ValueError for settings that do not fit the data, model or devices, OSError for a disk that is full,
    FileExistsError when `out` already holds a run, Interrupted after Ctrl-C."""
    out = Path(out)
    saved = latest(out / "checkpoints")
    if saved and not resume:
        raise FileExistsError(
            f"{out} already holds a run at step {saved.step}; resume it with --resume, or choose another --out"
        )
    if resume and not saved:
        raise FileNotFoundError(f"{out} holds no checkpoint to resume from")
    dataset = load(
        settings.data or None,
        tokenizer or settings.tokenizer,
        length=settings.length,
        batch=settings.batch,
        seed=settings.seed,
    )
    if saved and saved.config["fingerprint"] != dataset.fingerprint:
        raise ValueError(
            f"{out} was trained on other data: the text, tokenizer, length, batch or seed is not what it was"
        )
    spec = fitted(spec, dataset.tokenizer, settings, keep=params is not None or saved is not None)

    placement = placement_of(spec, settings)
    with in_force(placement):
        return _train(spec, settings, out, dataset, placement, saved, params, report)


def _train(
    spec: Spec,
    settings: Settings,
    out: Path,
    dataset: Dataset,
    placement: Placement | None,
    saved: Checkpoint | None,
    params: Any,
    report: Report,
) -> dict[str, Any]:
    """`train` from its data on, under its mesh."""
    optimizer, losses = settings.optimizer, settings.losses or default_losses(spec)
    if saved:
        state = restore(saved, shapes_on(spec, optimizer, placement))
    elif params is None:
        state = _initialised(spec, optimizer, new_key(settings.seed, settings.execution), placement)
    else:
        state = _started(spec, optimizer, params, placement)
    step, evaluate = _compiled(
        spec, settings.execution, optimizer, losses, settings.accumulate, settings.bias_rate, placement
    )
    batches = dataset.train()
    if saved:
        batches.set_state(saved.data)

    first = is_first()
    out.mkdir(parents=True, exist_ok=True)
    lines = _lines_before(out / "metrics.jsonl", int(state.step))
    before = lines[-1] if lines else {"seconds": 0.0, "seen": 0.0}
    begin, seen = time.monotonic() - before["seconds"], before["seen"]
    config = {"settings": to_plain(settings), "fingerprint": dataset.fingerprint}

    def record(line: dict[str, Any]) -> None:
        lines.append(line)
        print(json.dumps(line), file=stream, flush=True)
        report(line)

    metrics_file = out / "metrics.jsonl" if first else os.devnull
    with (
        open(metrics_file, "w", encoding="utf-8") as stream,
        Saver(out / "checkpoints", spec, dataset.tokenizer.files, config, settings.keep) as saver,
        _stop_signal() as stop,
    ):
        stream.writelines(json.dumps(line) + "\n" for line in lines)
        for number in range(int(state.step) + 1, optimizer.steps + 1):
            state, metrics = step(state, placed(next(batches), placement))
            values = {name: float(value) for name, value in metrics.items()}
            seen += values["tokens"]
            if not math.isfinite(values["loss"]):
                raise ValueError(f"the loss is {values['loss']} at step {number}; lower the learning rate")
            if _due(number, optimizer.steps, settings.evals):
                values["heldout"] = heldout_nats(evaluate, state.params, dataset, QUICK_EVAL, placement)
            seconds = time.monotonic() - begin
            record({"step": number, "seconds": round(seconds, 3), "seen": seen, **values})
            stopping = any_process(stop())
            if stopping or _due(number, optimizer.steps, settings.saves):
                saver.save(state, batches.get_state())
            if stopping:
                saver.wait()
                raise Interrupted(
                    f"stopped and saved at step {number} of {optimizer.steps}; to go on: archzoo train --resume {out}"
                )
        saver.save(state, batches.get_state())
    nats = heldout_nats(evaluate, state.params, dataset, placement=placement)
    summary = {
        "heldout_nats": nats,
        "unigram_nats": dataset.unigram_nats,
        "bits_per_byte": dataset.bits_per_byte(nats),
        "tokens": int(seen),
        "seconds": round(time.monotonic() - begin, 1),
        "steps": optimizer.steps,
        "parameters": spec.param_count(),
    }
    if not first:
        return summary
    trained = [(line["step"], line["loss"]) for line in lines]
    evals = [(line["step"], line["heldout"]) for line in lines if "heldout" in line] + [(optimizer.steps, nats)]
    (out / "loss.svg").write_text(loss_curve(out.name, trained, evals, dataset.unigram_nats), encoding="utf-8")
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


@cache
def _compiled(
    spec: Spec,
    execution: Execution,
    optimizer: Optimizer,
    losses: Losses,
    accumulate: int,
    bias_rate: float,
    placement: Placement | None,
) -> tuple[Any, Any]:
    """(step, evaluate), compiled once for a process however many runs it does."""
    if placement is None:
        step = make_step(spec, execution, optimizer, losses, accumulate, bias_rate)
        return jax.jit(step, donate_argnums=0), jax.jit(make_eval(spec, execution))
    execution = replace(execution, rules=placement.rules)
    step = make_step(spec, execution, optimizer, losses, accumulate, bias_rate)
    state, batch, whole = placement.state(spec, optimizer), placement.batch, placement.whole
    return (
        jax.jit(step, donate_argnums=0, in_shardings=(state, batch), out_shardings=(state, whole)),
        jax.jit(make_eval(spec, execution), in_shardings=(state.params, batch), out_shardings=whole),
    )


def placement_of(spec: Spec, settings: Settings) -> Placement | None:
    """Where a run of these settings lies, None for one device. Raises ValueError as `placement.place` does."""
    if not settings.mesh:
        if jax.process_count() > 1:
            raise ValueError(f"{jax.process_count()} processes need a mesh over their devices, as in --mesh auto")
        return None
    rows = settings.batch // settings.accumulate
    placement = place(spec, settings.mesh, settings.rules, rows, settings.length)
    if stages(placement.rules, placement.mesh.shape) > 1:
        microbatches(settings.execution.microbatches, rows, placement.rules, placement.mesh.shape)
    return placement


def _initialised(spec: Spec, optimizer: Optimizer, key: jax.Array, placement: Placement | None) -> State:
    if placement is None:
        return init_state(spec, optimizer, key)
    made = jax.jit(partial(init_state, spec, optimizer), out_shardings=placement.state(spec, optimizer))
    state: State = made(key)
    return state


def _started(spec: Spec, optimizer: Optimizer, params: Any, placement: Placement | None) -> State:
    if placement is None:
        begun: State = start_state(spec, optimizer, params)
        return begun
    spread = jax.device_put(params, placement.params(spec))
    made = jax.jit(partial(start_state, spec, optimizer), out_shardings=placement.state(spec, optimizer))
    state: State = made(spread)
    return state


def resumable(out: str | os.PathLike[str]) -> tuple[Spec, Settings]:
    """The spec and settings of the run in `out`.

    Raises FileNotFoundError when there is none, ValueError for a model that was imported and has no run to go on with.
    """
    saved = latest(Path(out) / "checkpoints")
    if saved is None:
        raise FileNotFoundError(f"{out} holds no checkpoint to resume from")
    if "settings" not in saved.config:
        raise ValueError(f"{out} was imported and has no run to resume; start one from it: archzoo train {out}")
    return saved.spec, from_plain(saved.config["settings"], "settings")


def fitted(spec: Spec, tokenizer: Tokenizer, settings: Settings, keep: bool) -> Spec:
    """The spec for a tokenizer: a new model's vocabulary becomes the tokenizer's, one that is kept must hold it."""
    if settings.length > spec.max_length:
        raise ValueError(
            f"length {settings.length} is longer than the model takes: spec.max_length is {spec.max_length}"
        )
    if not keep:
        pad = spec.pad_id if spec.pad_id is not None and spec.pad_id < tokenizer.vocab else None
        return spec.replace(vocab=tokenizer.vocab, bos_id=tokenizer.bos, eos_ids=(tokenizer.eos,), pad_id=pad)
    if tokenizer.vocab > spec.vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab} ids and the model {spec.vocab}; use the model's own tokenizer"
        )
    return spec


def heldout_nats(
    evaluate: Any, params: Any, dataset: Dataset, batches: int | None = None, placement: Placement | None = None
) -> float:
    """Mean loss in nats a token over the held-out batches, or the first of them."""
    sums = []
    for batch in islice(dataset.heldout(), batches):
        sums.append(evaluate(params, placed(batch, placement)))
        if placement is not None:  # several at a time can leave a CPU no thread for the device that the others wait for
            jax.block_until_ready(sums[-1])
    return math.fsum(float(nats) for nats, _ in sums) / math.fsum(float(weight) for _, weight in sums)


def _due(step: int, steps: int, times: int) -> bool:
    """Whether this is one of `times` steps spread evenly over the run, the last step not among them."""
    return step < steps and times > 0 and step % math.ceil(steps / (times + 1)) == 0


def _lines_before(path: Path, step: int) -> list[dict[str, Any]]:
    """The metrics up to a step; later ones belong to work that was not saved and will be done again."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
    return [line for line in lines if line["step"] <= step]


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came; a second one ends the process at once."""
    came: list[int] = []

    def handle(number: int, frame: Any) -> None:
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
