"""What the machine can do at best, as sides of a comparison (worker.py): XLA's float32 matmul, and XLA reading memory.

Each is the fastest of several forms, chosen when the side is built; facts["work"] is a run's FLOPs or bytes."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from worker import Run, Task, serve

SHAPES = ((2048, 2048, 2048), (4096, 1024, 4096), (1024, 4096, 4096), (4096, 4096, 1024), (4096, 4096, 4096))
"""Rows, summed axis, columns."""
GIGABYTE = 1 << 30


def matmul(task: Task) -> tuple[Run, dict[str, Any]]:
    forms = {}
    for rows, inner, columns in SHAPES:
        a, b = jnp.ones((rows, inner)), jnp.ones((inner, columns))
        forms[f"{rows}x{inner}x{columns}"] = (jax.jit(jnp.matmul), (a, b), 2.0 * rows * inner * columns)
    return best(forms)


def read(task: Task) -> tuple[Run, dict[str, Any]]:
    x = jnp.ones((math.isqrt(GIGABYTE // 4), math.isqrt(GIGABYTE // 4)))
    v = jnp.ones(x.shape[1])
    return best(
        {
            "sum of all": (jax.jit(jnp.sum), (x,), float(x.nbytes)),
            "sum of each row": (jax.jit(lambda x: jnp.sum(x, axis=1)), (x,), float(x.nbytes)),
            "matrix by vector": (jax.jit(jnp.matmul), (x, v), float(x.nbytes)),
        }
    )


def best(forms: dict[str, tuple[Callable[..., Any], tuple[Any, ...], float]]) -> tuple[Run, dict[str, Any]]:
    """The form of the highest rate, as often as takes about half a second. form: function, arguments, its work."""
    seconds = {
        name: min(timed(function, arguments) for _ in range(4)) for name, (function, arguments, _) in forms.items()
    }
    name = max(forms, key=lambda name: forms[name][2] / seconds[name])
    function, arguments, work = forms[name]
    repeats = max(1, round(0.5 / seconds[name]))

    def run() -> None:
        for _ in range(repeats):
            jax.block_until_ready(function(*arguments))

    return run, {"form": name, "work": repeats * work}


def timed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin


def build(task: Task) -> tuple[Run, dict[str, Any]]:
    return {"matmul": matmul, "read": read}[task["what"]](task)


if __name__ == "__main__":
    serve(build)
