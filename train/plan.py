"""Plans of a training step: compiled for the GPUs of a cluster that one does not have, or by arithmetic where there is
no compiler; and a search over meshes, rematerialisation and parts of the batch, which compiles what arithmetic likes.
"""

import dataclasses
import itertools
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..layers.decoder import Spec
from ..layers.execution import Execution
from ..sharding.mesh import Sizes, written
from ..sharding.plan import Program, compile_program, devices_of, roofline, seconds, summed
from ..sharding.rules import make_mesh, rules_by_name
from .estimate import Estimate, Job, estimate, ordered
from .loss import default_losses
from .optimizer import Optimizer
from .placement import Placement, shapes_on
from .step import make_step

OPTIMIZER = Optimizer(steps=100_000)
REMATS = ("none", "dots", "full")
MOST_PARTS = 64
"""Into how many parts a search cuts a batch at most: each part gathers all weights anew."""

SURE = 0.95
"""Up to what part of the memory arithmetic is believed that a step fits."""

AT_ONCE = 2
"""Processes that a search compiles in: each takes about one core, and one to two GB."""

INTEGERS = ("tokens", "targets", "segment_ids")
SPREAD = ("data", "fsdp", "expert", "tensor")
"""Axes that a search arranges devices along."""


def compiled(job: Job) -> Program:
    """The real step of training, compiled for the job's GPUs. Raises ValueError where that cannot be."""
    named = rules_by_name(job.rules)
    mesh = make_mesh(devices_of(job.instance, job.nodes, job.per_node), **job.sizes)
    placement = Placement(mesh, named)
    execution = Execution(dtype=job.dtype, target="gpu", rules=named, remat=job.remat, dispatch=job.dispatch)
    state = shapes_on(job.spec, OPTIMIZER, placement)
    batch = {
        name: jax.ShapeDtypeStruct((job.batch, job.length), dtype, sharding=placement.batch)
        for name, dtype in (*((name, jnp.int32) for name in INTEGERS), ("weights", jnp.float32))
    }
    step = make_step(job.spec, execution, OPTIMIZER, default_losses(job.spec), job.accumulate)
    out = (jax.tree.map(lambda leaf: leaf.sharding, state), None)
    return compile_program(step, (state, batch), mesh, job.per_node, donate=(0,), out_shardings=out)


def planned(job: Job, compile_it: bool = True) -> dict[str, Any]:
    """Everything about a job, as JSON holds it.

    compiled: whether memory and collectives are the compiler's; otherwise they are arithmetic's, as on hardware that
    nothing can be compiled for here. bytes, of one device: params, optimizer, temp (what lives during the step alone)
    and peak. bubble: the share of a pipeline's time that each of its stages is idle. flops: of one device and step,
    what idle stages compute included. Raises ValueError for a job that does not divide."""
    reason = job.unfit()
    if reason is not None:
        raise ValueError(f"mesh {written(job.sizes)}: {reason}; leave --mesh out to have one chosen")
    guess = estimate(job)
    program = compiled(job) if compile_it and job.instance.gpu is not None else None
    sent = guess.collectives if program is None else program.collectives
    busy = seconds(job.instance, guess.work, sent, job.dtype, job.nodes, job.per_node)
    tokens = job.batch * job.length
    peak = guess.peak if program is None else program.peak
    state = guess.bytes["params"] + guess.bytes["optimizer"]
    memory = job.instance.memory.value
    return {
        "instance": job.on,
        "nodes": job.nodes,
        "devices": job.devices,
        "idle": job.nodes * job.instance.devices - job.devices,
        "mesh": job.sizes,
        "remat": job.remat,
        "accumulate": job.accumulate,
        "bubble": 1 - job.microbatches / job.ticks,
        "batch": job.batch,
        "length": job.length,
        "compiled": program is not None,
        "bytes": {
            "params": guess.bytes["params"],
            "optimizer": guess.bytes["optimizer"],
            "temp": peak - state,
            "peak": peak,
        },
        "predicted_bytes": {**guess.bytes, "peak": guess.peak},
        "memory": memory,
        "fits": peak <= memory,
        "collectives": summed(sent, job.instance),
        "flops": guess.work.flops,
        "compile_seconds": None if program is None else program.compile_seconds,
        "hlo_sha256": None if program is None else program.hlo_sha256,
        "estimates": roofline(job.instance, job.nodes, busy, tokens, guess.model_flops, job.dtype, job.per_node),
    }


# --- searching -------------------------------------------------------------------------------------------------------


def candidates(
    job: Job, remats: Sequence[str] = REMATS, sizes: Sizes | None = None, accumulate: int | None = None
) -> Iterator[Job]:
    """The job on every mesh that divides (or the one given), with every policy and number of parts (or the one)."""
    every = itertools.chain.from_iterable(meshes(count) for count in usable(job))
    for mesh in [sizes] if sizes else filter(partial(sensible, job.spec), every):
        on_mesh = dataclasses.replace(job, sizes=mesh)
        rows = job.batch // on_mesh.parts(("batch",))
        allowed = range(1, MOST_PARTS + 1) if accumulate is None else (accumulate,)
        parts = [n for n in allowed if rows and n > 0 and rows % n == 0]
        if not parts or on_mesh.unfit():
            continue
        for remat, count in itertools.product(remats, parts):
            yield dataclasses.replace(on_mesh, remat=remat, accumulate=count)


def usable(job: Job) -> list[int]:
    """How many devices a mesh may have: all, or, as 72 divide little that a model has, of each node as many as the
    largest power of two.
    """
    own = job.instance.devices
    return [job.nodes * count for count in dict.fromkeys((own, 1 << own.bit_length() - 1))]


def meshes(devices: int) -> Iterator[Sizes]:
    """Every way to arrange so many devices along SPREAD."""

    def split(left: int, axes: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
        if len(axes) == 1:
            yield (left,)
            return
        for size in (n for n in range(1, left + 1) if left % n == 0):
            yield from ((size, *rest) for rest in split(left // size, axes[1:]))

    for sizes in split(devices, SPREAD):
        yield ordered(dict(zip(SPREAD, sizes, strict=True)))


def sensible(spec: Spec, sizes: Sizes) -> bool:
    """Whether a mesh is worth a look: a model without experts has no use for their axis, which would be one more of
    data; and where experts lie on tensor devices but on none of their own, the partitioner makes copies that arithmetic
    does not know of (as compiled, DeepSeek-V3 on fsdp=64,tensor=4 needs nine times the memory).
    """
    routed = any(hasattr(layer.mlp, "experts_per_token") for layer in spec.layers)
    expert, tensor = sizes.get("expert", 1), sizes.get("tensor", 1)
    return (expert > 1 or tensor == 1) if routed else expert == 1


def predicted_seconds(job: Job, guess: Estimate) -> float:
    """By arithmetic, at least (roofline)."""
    busy = seconds(job.instance, guess.work, guess.collectives, job.dtype, job.nodes, job.per_node)
    return max(busy.values()) + 1e-3 * sum(busy.values())


def ranked(jobs: Iterator[Job]) -> list[tuple[Job, Estimate]]:
    """Those that arithmetic says fit, fastest first, and of equally fast ones those with most memory left; if none fit,
    those that need least."""
    every = [(job, estimate(job)) for job in jobs]
    fits = [(job, guess) for job, guess in every if guess.peak <= SURE * job.instance.memory.value]
    if not fits:
        return sorted(every, key=lambda one: one[1].peak)
    return sorted(fits, key=lambda one: (predicted_seconds(*one), one[1].peak))


def default(job: Job, remats: Sequence[str] = REMATS, sizes: Sizes | None = None, accumulate: int | None = None) -> Job:
    """The job as arithmetic would have it. Raises ValueError for a mesh of other than its devices, and where nothing
    divides."""
    counts = usable(job)
    if sizes is not None and math.prod(sizes.values()) not in counts:
        asked = f"mesh {written(sizes)} needs {math.prod(sizes.values())} devices"
        fewer = "".join(f", of which {count} may be used" for count in counts[1:])
        raise ValueError(f"{asked}, but {job.nodes} x {job.on} have {counts[0]}{fewer}")
    found = ranked(candidates(job, remats, sizes, accumulate))
    if not found:
        raise _indivisible(job, sizes, accumulate)
    return found[0][0]


def _indivisible(job: Job, sizes: Sizes | None = None, accumulate: int | None = None) -> ValueError:
    """Why the job has no candidates, in words with numbers."""
    devices = usable(job)[0]
    tried = dataclasses.replace(job, sizes=sizes or {"fsdp": devices}, accumulate=accumulate or 1)
    reason = tried.unfit() or f"{job.batch} rows do not divide into {accumulate} parts on each device"
    return ValueError(
        f"no mesh of {devices} devices takes a batch of {job.batch} rows of {job.length} tokens: {reason}; "
        "change --mesh, --batch, --accumulate or --nodes"
    )


def search(
    job: Job,
    most: int,
    compile_them: bool = True,
    remats: Sequence[str] = REMATS,
    report: Callable[[int, int, str], None] = lambda done, of, words: None,
) -> list[dict[str, Any]]:
    """Plans of the `most` candidates that arithmetic likes best, on different meshes and policies first; those that fit
    before those that do not, the fastest first. Each says its rank by arithmetic, from 1.

    report: called with (plans done, of how many, the mesh just done). A script that compiles must be one that can be
    imported, as processes of multiprocessing do: under `if __name__ == "__main__"`."""
    if most < 1:
        raise ValueError(f"--most is {most}: a search compiles at least one plan")
    chosen = ranked(candidates(job, remats))
    if not chosen:
        raise _indivisible(job)
    best: dict[tuple[Any, ...], Job] = {}
    for one, _ in chosen:  # parts of a batch change little else, so the best number of parts stands for its mesh
        best.setdefault((written(one.sizes), one.remat), one)
    picked = list(best.values())[:most]
    plans = []
    report(0, len(picked), "compiling" if compile_them else "arithmetic")
    for place, plan in _each(picked, compile_them and job.instance.gpu is not None):
        plans.append({"predicted_rank": place + 1, **plan})
        report(len(plans), len(picked), f"{written(picked[place].sizes)} {picked[place].remat}")
    return sorted(
        plans, key=lambda plan: (not plan["fits"], *(plan["estimates"]["seconds"][of] for of in ("least", "most")))
    )


def _each(jobs: Sequence[Job], compile_them: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, plan) of every job, as they are done: compiled in processes, as one compiles one program at a time."""
    if not compile_them:
        yield from ((place, planned(job, False)) for place, job in enumerate(jobs))
        return
    with ProcessPoolExecutor(min(AT_ONCE, len(jobs)), multiprocessing.get_context("spawn")) as pool:
        doing = {pool.submit(planned, job): place for place, job in enumerate(jobs)}
        yield from ((doing[done], done.result()) for done in as_completed(doing))


def job_of(spec: Spec, on: str, nodes: int, batch: int, length: int, **more: Any) -> Job:
    """A job on no mesh yet: `default`, `search` and `candidates` find it one."""
    if min(nodes, batch, length) < 1:
        raise ValueError(f"--nodes, --batch and --length must be positive, not {nodes}, {batch} and {length}")
    if length > spec.max_length:
        raise ValueError(f"--length is {length}: the model takes at most {spec.max_length} tokens")
    return Job(spec=spec, on=on, nodes=nodes, sizes={"data": 1}, batch=batch, length=length, **more)
