"""A run as one watches it: a live line on a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 10.0
"""Seconds between lines in a log."""


@contextmanager
def progress(steps: int, quiet: bool = False) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields what to call with each metrics line (loop.py). On stderr, so that stdout stays the program's output."""
    console = Console(stderr=True)
    if quiet:
        yield lambda line: None
    elif console.is_terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("compiling", total=steps)
            words = _Words()
            yield lambda line: bar.update(task, completed=line["step"], description=words(line))
    else:
        words, last = _Words(), [0.0]

        def report(line: dict[str, Any]) -> None:
            text, now = words(line), time.monotonic()
            if now - last[0] >= EVERY or "heldout" in line or line["step"] == steps:
                last[0] = now
                print(
                    f"step {line['step']}/{steps}  {text}  {words.eta(line['step'], steps)}",
                    file=sys.stderr,
                    flush=True,
                )

        yield report


@contextmanager
def counted(quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """Yields what to call with (done, of how many, what is at hand): a bar on a terminal, lines in a log, on stderr."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda done, of, words: None if quiet else print(f"{done}/{of}  {words}", file=sys.stderr, flush=True)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("arithmetic", total=None)
        yield lambda done, of, words: bar.update(task, completed=done, total=of, description=words)


class _Words:
    """Loss, held-out loss and speed of a metrics line, remembering the last ones."""

    def __init__(self) -> None:
        self.heldout, self.rate, self.pace = "", 0.0, 0.0
        self.first: dict[str, Any] = {}

    def __call__(self, line: dict[str, Any]) -> str:
        self.first = self.first or line
        if line["step"] > self.first["step"]:
            self.rate = (line["seen"] - self.first["seen"]) / max(line["seconds"] - self.first["seconds"], 1e-9)
            self.pace = (line["seconds"] - self.first["seconds"]) / (line["step"] - self.first["step"])
        if "heldout" in line:
            self.heldout = f"  held-out {line['heldout']:.3f}"
        return f"loss {line['loss']:.3f}{self.heldout}  {self.rate:,.0f} tokens/s"

    def eta(self, step: int, steps: int) -> str:
        return f"{(steps - step) * self.pace:.0f} s left" if self.rate else ""
