"""One side of a comparison, in a process and an environment of its own: builds a task, then runs it when told to.

Imported by every side, so it needs nothing but the standard library. The protocol is lines of JSON: the task comes in,
{"ready": true, ...facts} goes out; then each line in is one run, answered by {"seconds": ...}."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Task = dict[str, Any]
Run = Callable[[], None]


def serve(build: Callable[[Task], tuple[Run, dict[str, Any]]]) -> None:
    """Runs this process's side. build: task -> (one run, which must wait for its results; facts to report).

    The first run, which compiles, is timed apart and reported as first_seconds.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not pass for an answer
    task = json.loads(sys.stdin.readline())
    try:
        run, facts = build(task)
        first = _timed(run)
    except Exception as error:
        print(json.dumps({"failed": f"{type(error).__name__}: {error}"}), file=answers)
        raise
    print(json.dumps({"ready": True, "first_seconds": first, **facts}), file=answers)
    for _ in sys.stdin:
        print(json.dumps({"seconds": _timed(run)}), file=answers)


def _timed(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
