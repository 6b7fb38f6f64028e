"""Compile for the cluster one does not have: what a program holds, sends and computes on each device, and how fast the
hardware could run it at best.

Knows no model: it takes a function and shapes, or a count of work. The compiler gives memory and collectives; time is a
roofline (Williams et al. 2009) of published figures (hardware.py): what each resource of a device needs if it is never
idle. A step takes at least the longest of these, if all else hides behind it, and at most their sum, if nothing does:
never faster, and in practice slower than either, as no kernel reaches its peak."""

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from .hardware import Instance
from .hlo import Collective, collectives
from .targets import topology

LINKS = {"gpu": ("nvlink", "efa"), "neuron": ("neuronlink", "efa"), "cpu": ("socket", "network")}
"""What connects the devices of a node, and nodes, by platform."""


CPU_REACHES = 0.45
"""Of a CPU's peak, what the products of small models reach in training (benchmarks/roofline.py)."""

FASTER = {"xla_backend_optimization_level": 0}
"""Options of a compiler whose kernels nobody will run: the program, its memory and its collectives are the same."""


class Program(NamedTuple):
    """A compiled program on one device: bytes of its arguments (donated ones hold the results too), of its temporaries,
    and in all; its collectives; seconds of compiling; its fingerprint."""

    arguments: int
    temporaries: int
    peak: int
    collectives: tuple[Collective, ...]
    compile_seconds: float
    hlo_sha256: str


class Work(NamedTuple):
    """What one device does in a step. flops: with what is computed again. traffic: bytes to and from its memory."""

    flops: float
    traffic: float


def devices_of(instance: Instance, nodes: int, per_node: int | None = None) -> Sequence[Any]:
    """Devices to compile for. per_node: how many of a node's are used, None for all.

    Raises ValueError where the instance has no GPUs, or the compiler is missing."""
    if instance.gpu is None:
        raise ValueError(f"programs can be compiled ahead of time for GPUs, not for {instance.chip}")
    return list(topology(instance.gpu, hosts=nodes, per_host=per_node or instance.devices).devices)


def fingerprint(text: str) -> str:
    """The SHA-256 of a program's instructions, wherever in which source they were written."""
    lines = [re.sub(r", metadata=\{[^}]*\}", "", line) for line in text.splitlines() if " = " in line]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def compile_program(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    mesh: Mesh,
    per_node: int,
    donate: tuple[int, ...] = (),
    out_shardings: Any = None,
) -> Program:
    """The program of a function for the GPUs of a mesh (`devices_of`), from ShapeDtypeStructs with shardings.

    per_node: devices a node."""
    start = time.monotonic()
    more = {} if out_shardings is None else {"out_shardings": out_shardings}
    with jax.set_mesh(mesh):
        traced = jax.jit(function, donate_argnums=donate, **more).trace(*arguments)
        compiled = traced.lower(lowering_platforms=("cuda",)).compile(FASTER)
    seconds = time.monotonic() - start
    text, held = compiled.as_text(), compiled.memory_analysis()
    order = {device.id: i for i, device in enumerate(sorted(mesh.devices.flat, key=lambda device: device.id))}
    own = held.output_size_in_bytes - held.alias_size_in_bytes
    return Program(
        arguments=held.argument_size_in_bytes,
        temporaries=held.temp_size_in_bytes,
        peak=held.argument_size_in_bytes + held.temp_size_in_bytes + own,
        collectives=tuple(collectives(text, [order[device.id] // per_node for device in mesh.devices.flat])),
        compile_seconds=seconds,
        hlo_sha256=fingerprint(text),
    )


def seconds(
    instance: Instance,
    work: Work,
    sent: Sequence[Collective],
    dtype: str,
    nodes: int = 1,
    per_node: int | None = None,
) -> dict[str, float]:
    """What each resource of a device is busy for: compute, memory, and the links within and between nodes.

    per_node: how many of a node's devices are used, and share its network; None for all. Raises ValueError for a dtype
    whose speed is not known, and for traffic over a link that the instance lacks."""
    if dtype not in instance.flops:
        raise ValueError(f"no figure for {dtype} on {instance.chip}; there are {', '.join(instance.flops)}")
    within, between = LINKS[instance.platform]
    near = sum(one.count * one.traffic()[0] for one in sent)
    far = sum(one.count * one.traffic()[1] for one in sent)
    found = {
        "compute": work.flops / instance.flops[dtype].value,
        "memory": work.traffic / instance.bandwidth.value,
    }
    if instance.link is not None:
        found[within] = near / instance.link.value
    elif near:
        raise ValueError(f"{instance.chip}: a node has one device, and nothing to send within it")
    if nodes > 1:
        found[between] = far / (instance.network.value / (per_node or instance.devices))
    return found


def roofline(
    instance: Instance,
    nodes: int,
    busy: Mapping[str, float],
    tokens: float,
    model_flops: float,
    dtype: str,
    per_node: int | None = None,
) -> dict[str, Any]:
    """Estimates of a step: seconds at least and at most (see above), on a CPU, where nothing overlaps, as expected too;
    its bound, tokens a second, the most of the peak that it can use (MFU, without what is computed again), USD a
    billion tokens at on-demand prices.

    busy: `seconds`.  tokens, model_flops: of the step, on all devices.  per_node: as there; idle devices are paid for,
    and are no part of the peak."""
    bound = max(busy, key=lambda name: busy[name])
    least, most = busy[bound], sum(busy.values())
    peak = instance.flops[dtype].value * (per_node or instance.devices) * nodes
    expected = {"expected": most + busy["compute"] * (1 / CPU_REACHES - 1)} if instance.platform == "cpu" else {}
    hourly = None if instance.price is None else instance.price.value * nodes
    return {
        "seconds": {**busy, "least": least, "most": most, **expected},
        "bound": bound,
        "tokens_per_second": tokens / least,
        "mfu_ceiling": model_flops / peak / least,
        "usd_per_billion_tokens": None if hourly is None else hourly / 3600 * least / tokens * 1e9,
    }


def summed(sent: Sequence[Collective], instance: Instance) -> list[dict[str, Any]]:
    """Collectives of one kind, size and link as one row: bytes (see Collective) of one step in all, and how many."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for one in sent:
        link = LINKS[instance.platform][one.nodes > 1]
        row = rows.setdefault(
            (one.kind, link, one.size),
            {"kind": one.kind, "link": link, "devices": one.size, "bytes": 0, "count": 0, "certain": True},
        )
        row["bytes"] += one.bytes * one.count
        row["count"] += one.count
        row["certain"] &= one.certain
    return sorted(rows.values(), key=lambda row: -row["bytes"])
