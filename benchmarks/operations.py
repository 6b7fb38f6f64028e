"""Where a train step's time goes, by operation: python benchmarks/operations.py MODEL [--length 256] [--batch 4]

Reads the trace that JAX's own profiler writes. Operations that hold others (calls, loops, fusions' parents) count only
what is their own; the rest of the wall time is on the last line."""

import argparse
import collections
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jax.profiler import ProfileData

import archzoo
from archzoo.train.loss import Losses
from archzoo.train.step import init_state, make_step
from harness import ENVIRONMENT
from models import MODELS
from side_archzoo import OPTIMIZER, batch


def wall_times(folder: str) -> tuple[dict[str, tuple[float, int]], float]:
    """(milliseconds of wall time and calls of each operation, milliseconds in which none ran).

    Time in which several run is shared equally between them; loops and calls do not count, what they run does."""
    (file,) = Path(folder).rglob("*.xplane.pb")
    edges: list[tuple[float, int, str]] = []
    calls: collections.Counter[str] = collections.Counter()
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                name = str(dict(event.stats).get("hlo_op", ""))
                if name and not re.match(r"(while|call|conditional)[.\d]*$", name):
                    edges += [(event.start_ns, 1, name), (event.start_ns + event.duration_ns, -1, name)]
                    calls[name] += 1
    running: collections.Counter[str] = collections.Counter()
    wall: dict[str, float] = collections.defaultdict(float)
    idle, last = 0.0, min(edges)[0]
    for at, change, name in sorted(edges):
        active = running.total()
        for busy, count in running.items():
            wall[busy] += (at - last) / 1e6 * count / active
        idle += (at - last) / 1e6 if not active else 0
        running[name] += change
        running += collections.Counter()
        last = at
    return {name: (ms, calls[name]) for name, ms in wall.items()}, idle


KINDS = (
    ("optimizer", r"optim|adam|clip|update_moment|bias_correction"),
    ("head and loss", r"jvp\(\)/|transpose\(jvp\(\)\)|unembed|_take"),
    ("attention core", r"/(BLKGE,BMKE->BKGLM|BKGLM,BMKU->BLKGU|core)"),
    ("attention", r"/attention/"),
    ("mlp", r"/mlp/"),
    ("norms", r"_(before|after|outer)/|norm"),
)


def group_of(name: str, source: str) -> tuple[str, str]:
    """(part of the model, kind of operation) of an operation."""
    part = next((kind for kind, pattern in KINDS if re.search(pattern, source)), "other")
    if re.match(r"(wrapped_)?broadcast[.\d]*$", name):
        return part, "fill"
    if re.match(r"(dot|custom-call)", name) or ("dot_general" in source and name.startswith("ynn")):
        return part, "matmul"
    if re.search(r"dynamic-(update-)?slice|copy|transpose", name):
        return part, "copy"
    return part, "elementwise"


def lines(found: Mapping[str, tuple[float, float]], sources: Mapping[str, str], rows: int) -> Iterator[str]:
    """A table of (milliseconds, calls) of each operation, by part and kind, and those that take the longest."""
    table: dict[tuple[str, str], float] = collections.defaultdict(float)
    for name, (ms, _) in found.items():
        table[group_of(name, sources.get(name, ""))] += ms
    kinds = ("matmul", "elementwise", "copy", "fill")
    yield " " * 16 + "".join(f"{kind:>14}" for kind in kinds)
    for part in sorted({part for part, _ in table}):
        yield f"{part:16}" + "".join(f"{table[part, kind]:14.1f}" for kind in kinds)
    sums = [sum(ms for (_, k), ms in table.items() if k == kind) for kind in kinds]
    yield " " * 16 + "".join(f"{ms:14.1f}" for ms in sums) + f", {sum(sums):.1f} ms a step"
    for name, (ms, calls) in sorted(found.items(), key=lambda item: -item[1][0])[:rows]:
        yield f"{ms:8.2f} ms {calls:6.0f}x  {name:40} {sources.get(name, '')[-110:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=40, help="how many operations to list")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--hlo", help="write the optimised HLO here")
    options = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != ENVIRONMENT["GLIBC_TUNABLES"]:  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})

    spec = archzoo.spec_from_hf(MODELS[options.model])
    state = init_state(spec, OPTIMIZER, jax.random.key(0))
    rows = batch(spec, options.batch, options.length)
    step = make_step(spec, archzoo.Execution(remat=options.remat), OPTIMIZER, Losses())
    compiled = jax.jit(step, donate_argnums=0).lower(state, rows).compile()
    text = compiled.as_text()
    if options.hlo:
        Path(options.hlo).write_text(text)

    def steps() -> None:
        nonlocal state
        for _ in range(options.steps):
            state, _ = jax.block_until_ready(compiled(state, rows))

    steps()
    begin = time.perf_counter()
    steps()
    print(f"{(time.perf_counter() - begin) / options.steps * 1e3:8.1f} ms a step without the profiler")
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            steps()
        found, idle = wall_times(folder)
    sources = dict(re.findall(r"%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", text))
    a_step = {name: (ms / options.steps, calls / options.steps) for name, (ms, calls) in found.items()}
    print(*lines(a_step, sources, options.rows), sep="\n")
    print(f"{idle / options.steps:8.2f} ms between operations")


if __name__ == "__main__":
    main()
