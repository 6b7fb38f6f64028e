"""`archzoo plan`'s arithmetic for a CPU against the clock: a step of training of nano models on this machine.

    python benchmarks/roofline.py [--models llama3-nano,deepseek-v3-nano] [--json FILE]

First the machine's speed of float32 products and of reading memory is measured, which the arithmetic goes by. Measured
is the fastest of several steps, as a roofline bounds what could be. Needs the machine for itself: two minutes."""

import argparse
import json
import os
import time
from functools import partial

import jax
import jax.numpy as jnp

from archzoo import MODELS, Execution
from archzoo.sharding.hardware import Figure, Instance
from archzoo.train.estimate import Job
from archzoo.train.loss import default_losses
from archzoo.train.optimizer import Optimizer
from archzoo.train.plan import planned
from archzoo.train.step import init_state, make_step
from side_machine import matmul, read

NANOS = ("llama3-nano", "olmo2-nano", "gemma3-nano", "qwen3-moe-nano", "deepseek-v3-nano")
BATCH, LENGTH, STEPS = 8, 256, 5


def rate(side) -> float:
    """FLOP/s or bytes a second, of the fastest of a few runs."""
    run, facts = side({})
    run()
    return max(facts["work"] / elapsed(run) for _ in range(3))


def elapsed(run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def this_machine() -> Instance:
    """What it can do at best, as measured now."""
    figure = partial(Figure, source="measured on this machine", date=time.strftime("%Y-%m"))
    flops = figure(rate(matmul))
    return Instance(
        chip=f"{os.cpu_count()} cores",
        platform="cpu",
        devices=1,
        memory=figure(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))),
        bandwidth=figure(rate(read)),
        flops={"float32": flops, "bfloat16": flops},
        network=figure(1e9),
    )


def measured(name: str) -> float:
    """Seconds of a step of training, compiled and warm."""
    spec, optimizer = MODELS[name], Optimizer(steps=100)
    step = jax.jit(make_step(spec, Execution(), optimizer, default_losses(spec)), donate_argnums=0)
    state = jax.jit(partial(init_state, spec, optimizer))(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, spec.vocab)
    batch = {
        "tokens": tokens,
        "targets": tokens,
        "segment_ids": jnp.ones_like(tokens),
        "weights": jnp.ones((BATCH, LENGTH)),
    }
    seconds = []
    for _ in range(STEPS + 2):
        begin = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - begin)
    return min(seconds[2:])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", default=",".join(NANOS), help="names of presets, with commas")
    options.add_argument("--json", metavar="FILE", help="write the figures there too")
    given = options.parse_args()
    machine = this_machine()
    speed = f"{machine.flops['float32'].value / 1e9:.0f} GFLOP/s, {machine.bandwidth.value / 1e9:.1f} GB/s"
    print(f"{machine.chip}: {speed}; {BATCH} rows of {LENGTH} tokens, float32", flush=True)
    rows = []
    for name in given.models.split(","):
        one = {"batch": BATCH, "length": LENGTH, "dtype": "float32", "remat": "none"}
        job = Job(spec=MODELS[name], on="this machine", hardware=machine, nodes=1, sizes={"data": 1}, **one)
        seconds, clock = planned(job)["estimates"]["seconds"], measured(name)
        ratio = clock / seconds["expected"]
        rows.append({"model": name, "seconds": seconds, "measured": clock})
        print(
            f"{name:20} at least {seconds['least'] * 1e3:6.1f} ms, expected {seconds['expected'] * 1e3:6.1f} ms, "
            f"measured {clock * 1e3:6.1f} ms: {ratio:.2f} times what was expected",
            flush=True,
        )
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine.chip, "speed": speed, "batch": BATCH, "length": LENGTH, "rows": rows}, file)


if __name__ == "__main__":
    main()
