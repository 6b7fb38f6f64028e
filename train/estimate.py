"""A training step, or a step of decoding, by arithmetic: what each device of a mesh holds, sends and computes, without
a compiler.

Parameters are counted leaf by leaf from their axes and the rules; a layer's weights are gathered over the devices that
hold parts of them, forward and again backward, its gradients scattered back (ZeRO stage 3, Rajbhandari et al. 2020),
its tokens sent to their experts and back (GShard, Lepikhin et al. 2020), and what tensor devices sum, summed (Shoeybi
et al. 2019). Activations: what a layer keeps is its input (remat full) or the results of its products too; the rest
lives while one layer is computed. The constants are fitted to what XLA plans for a dense model.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from ..layers.accounting import DEPTH, Leaf, is_matrix, is_predictor, is_vocab, leaves, output_axes
from ..layers.decoder import Spec
from ..layers.execution import Execution
from ..layers.pipeline import microbatches
from ..sharding.hardware import Instance, instance
from ..sharding.hlo import Collective
from ..sharding.mesh import Array, Sizes, misfit
from ..sharding.plan import Work
from ..sharding.rules import MESH_AXES, rules_by_name
from .loss import default_losses, predicts

DTYPES = {"float32": 4, "bfloat16": 2}
FLOAT = 4
MOMENTS = 2
"""Of AdamW, float32 each."""

WORKING = 4.0
"""Copies of what the products of one layer give that are alive at the height of its backward pass."""

GATHERED = 3.0
"""Copies of one layer's gathered weights: this layer's, the next one's on its way, and its gradients."""

ROWS = 3.0
"""Of a layer with experts, rows of the model's width for every choice that could reach a device: what goes in, what
comes out, and the gradient of one. Dropless and of fixed shape, there is room for all tokens of all devices that share
the experts. Beside them is alive the larger of the two that follow."""

BESIDE, WITH_EXPERTS = 2.75, 2.0
"""Copies of what its other products give, and of its gathered weights."""

CHUNK = 2**27
"""Elements of the logits that are alive at once (loss.py takes a chunk of tokens at a time)."""

TOUCHES = 6
"""How often a step reads or writes each result of a product, its own gradient included."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A step of training on a cluster. on: the instance's name.  sizes: mesh axis -> devices.  batch: rows of a step.

    length: tokens a row.  accumulate: parts that the batch is taken in.  remat, dtype, dispatch: as of Execution.
    rules: their name.  hardware: what a node is, None for the table's row of that name."""

    spec: Spec
    on: str
    nodes: int
    sizes: Sizes
    batch: int
    length: int
    accumulate: int = 1
    remat: str = "full"
    rules: str = "default"
    dtype: str = "bfloat16"
    dispatch: str = "auto"
    hardware: Instance | None = None

    @cached_property
    def instance(self) -> Instance:
        return self.hardware or instance(self.on)

    @property
    def devices(self) -> int:
        """How many devices it uses."""
        return math.prod(self.sizes.values())

    @property
    def per_node(self) -> int:
        """How many devices of a node it uses: all, or fewer where some stay idle."""
        return max(self.devices // self.nodes, 1)

    def over(self, axes: Sequence[str | None]) -> tuple[str, ...]:
        """The mesh axes, of more than one device, that an array with these logical axes is spread over."""
        return tuple(name for name in _over(self.rules, tuple(axes)) if self.sizes.get(name, 1) > 1)

    def parts(self, axes: Sequence[str | None]) -> int:
        """Into how many parts such an array is cut."""
        return math.prod(self.sizes[name] for name in self.over(axes))

    @property
    def microbatches(self) -> int:
        """In how many parts a pipeline takes a part of the batch; 1 where there is none."""
        if self.parts(("layers",)) == 1:
            return 1
        return microbatches(None, self.batch // self.accumulate, rules_by_name(self.rules), self.sizes)

    @property
    def ticks(self) -> int:
        """How often a stage runs its layers for that, idle times included (layers/pipeline.py)."""
        return self.microbatches + self.parts(("layers",)) - 1

    def group(self, names: Sequence[str]) -> tuple[int, int]:
        """(devices, nodes) of the group along these mesh axes, the nodes where most."""
        return _group(tuple(self.sizes.items()), frozenset(names), self.per_node)

    def unfit(self) -> str | None:
        """Why this job cannot be: what does not divide, in words; None if it can."""
        rows = self.batch // self.accumulate
        if self.batch % self.accumulate:
            return f"a batch of {self.batch} rows does not divide into {self.accumulate} parts"
        batch = Array("the batch", ("batch", "length"), (rows, self.length))
        return misfit(self.sizes, [batch, *arrays(self.spec)], rules_by_name(self.rules))


@cache
def arrays(spec: Spec) -> list[Array]:
    """One parameter for each axes and shape that there are."""
    return list(
        {(leaf.axes, leaf.shape): Array("/".join(leaf.path), leaf.axes, leaf.shape) for leaf in leaves(spec)}.values()
    )


class Estimate(NamedTuple):
    """Of one device, bytes: params, optimizer, gradients, activations, working; its collectives and work; and of the
    whole step, model_flops, forward and backward without what is computed again.
    """

    bytes: dict[str, float]
    collectives: list[Collective]
    work: Work
    model_flops: float

    @property
    def peak(self) -> float:
        return sum(self.bytes.values())


@cache
def _over(rules: str, axes: tuple[str | None, ...]) -> tuple[str, ...]:
    return tuple(name for names in rules_by_name(rules).over(axes) for name in names)


@cache
def _group(sizes: tuple[tuple[str, int], ...], names: frozenset[str], per_node: int) -> tuple[int, int]:
    order = np.arange(math.prod(size for _, size in sizes)).reshape([size for _, size in sizes]) // per_node
    moved = [i for i, (name, _) in enumerate(sizes) if name in names]
    kept = [i for i in range(order.ndim) if i not in moved]
    nodes = np.sort(order.transpose(*kept, *moved).reshape(-1, math.prod(order.shape[i] for i in moved)))
    return nodes.shape[1], 1 + int(np.max(np.sum(np.diff(nodes) > 0, axis=1)))


def _selected(leaf: Leaf) -> float:
    """How many copies of a stack of experts a token uses; 1 of what is no stack."""
    return float(leaf.owner.experts_per_token) if "experts" in leaf.axes else 1.0


def _experts(leaf: Leaf) -> int:
    return leaf.shape[leaf.axes.index("experts")] if "experts" in leaf.axes else 1


def _depth(leaf: Leaf) -> int:
    return leaf.shape[0] if leaf.axes[0] in DEPTH else 1


def _layer(leaf: Leaf) -> str:
    return "/".join(leaf.path[:2]) if leaf.axes[0] in DEPTH else leaf.path[0]


def _per_layer(leaf: Leaf) -> int:
    return math.prod(leaf.shape) // _depth(leaf)


class Results(NamedTuple):
    """What the products of a layer give on one device. repeats: of the layer.  plain: elements for one token, of what
    every token passes.  routed: elements for one choice of an expert.  choices: of a token, 0 without experts."""

    repeats: int
    plain: float = 0.0
    routed: float = 0.0
    choices: float = 0.0

    @property
    def token(self) -> float:
        """Elements for one token, its experts' included."""
        return self.plain + self.routed * self.choices


def results(job: Job) -> dict[str, Results]:
    """By layer."""
    found: dict[str, Results] = {}
    for leaf in leaves(job.spec):
        if is_matrix(leaf) and not is_vocab(leaf):
            out = [leaf.axes[i] for i in output_axes(leaf)]
            tensor = [name for name in job.over(out) if name not in job.over(("batch",))]
            cut = math.prod(job.sizes[name] for name in tensor)
            size = math.prod(leaf.shape[i] for i in output_axes(leaf)) / cut
            before = found.get(_layer(leaf), Results(_depth(leaf)))
            if "experts" in leaf.axes:
                found[_layer(leaf)] = before._replace(routed=before.routed + size, choices=_selected(leaf))
            else:
                found[_layer(leaf)] = before._replace(plain=before.plain + size)
    return found


def places(job: Job) -> float:
    """For how many times the choices of its own tokens a device's experts have room: by capacity, what the execution
    gives them; else for those of all devices that share the experts, which may all come.
    """
    capacity = job.dispatch == "capacity" or (job.dispatch == "auto" and job.instance.platform == "neuron")
    return Execution().capacity if capacity else float(job.parts(("experts",)))


def estimate(job: Job) -> Estimate:
    """The step of training by arithmetic."""
    spec, wide = job.spec, DTYPES[job.dtype]
    every = leaves(spec)
    held = sum(math.prod(leaf.shape) / job.parts(leaf.axes) for leaf in every)
    tokens = job.batch * job.length / job.accumulate / job.parts(("batch", "length"))
    layers = results(job)
    room = places(job)

    def kept(layer: Results) -> float:
        """Elements of a token beside the layer's input. The experts' kernels are no dots."""
        return {"full": 0.0, "dots": layer.plain, "none": layer.plain + layer.routed * layer.choices * room}[job.remat]

    activations = sum(layer.repeats * (spec.width + kept(layer)) for layer in layers.values()) * tokens * wide
    gathered: dict[str, float] = {}
    for leaf in every:
        if not is_vocab(leaf):
            apart = [name for name in job.over(leaf.axes) if name not in job.over(("batch",)) or name == "expert"]
            cut = math.prod(job.sizes[name] for name in apart) if apart else 1
            gathered[_layer(leaf)] = gathered.get(_layer(leaf), 0) + _per_layer(leaf) / cut
    vocab = sum(math.prod(leaf.shape) for leaf in every if is_vocab(leaf)) / job.parts(("vocab",))
    alive = [
        ROWS * spec.width * layer.choices * room * tokens
        + max(BESIDE * layer.plain * tokens, WITH_EXPERTS * gathered.get(name, 0.0))
        if layer.choices
        else WORKING * layer.plain * tokens + GATHERED * gathered.get(name, 0.0)
        for name, layer in layers.items()
    ]
    routed = sum(math.prod(leaf.shape) / job.parts(leaf.axes) for leaf in every if "experts" in leaf.axes)
    loss = FLOAT * min(tokens * spec.vocab / job.parts(("vocab",)), CHUNK) * 2 + vocab * (wide + FLOAT)
    held_bytes = {
        "params": held * FLOAT,
        "optimizer": held * FLOAT * MOMENTS,
        "gradients": (held * (2 if job.accumulate > 1 else 1) + routed) * FLOAT,  # of experts, copied once more
        "activations": activations,
        "working": max(max(alive) * wide, loss),
    }
    losses = default_losses(spec)
    forward = spec.flops_per_token(job.length)
    extra = further_flops(spec, job.length) if predicts(spec, losses) else 0.0
    again = (1 if job.remat == "full" else 0) + (1 if losses.balance > 0 and job.accumulate > 1 else 0)
    step_tokens = job.batch * job.length
    work = Work(
        flops=(forward + extra) * (3 + again) * step_tokens / job.devices * job.ticks / job.microbatches,
        traffic=_traffic(job, held, tokens, gathered, vocab, layers, again),
    )
    return Estimate(held_bytes, sent(job, tokens, again), work, 3 * forward * step_tokens)


def further_flops(spec: Spec, length: int) -> float:
    """Forward FLOPs a token of multi-token prediction: its modules and the head again for each."""
    own = [leaf for leaf in leaves(spec) if is_predictor(leaf) and is_matrix(leaf)]
    products = sum(2 * math.prod(leaf.shape) * _selected(leaf) / _experts(leaf) for leaf in own)
    depth = spec.predictor.depth if spec.predictor else 0
    attention = spec.predictor.attention.flops(length) if spec.predictor else 0.0
    return products + depth * (2 * spec.vocab * spec.width + attention)


def _traffic(
    job: Job,
    held: float,
    tokens: float,
    gathered: dict[str, float],
    vocab: float,
    layers: dict[str, Results],
    again: int,
) -> float:
    """Bytes to and from a device's memory: gathered weights in each pass, gradients, results, and the optimizer."""
    wide = DTYPES[job.dtype]
    weights = sum(layers[name].repeats * size for name, size in gathered.items() if name in layers) + vocab
    outputs = sum(layer.repeats * (layer.token + job.spec.width) for layer in layers.values()) * tokens * wide
    passes = weights * wide * (4 + again) + outputs * (TOUCHES + again)
    optimizer = held * FLOAT * (3 + 4)  # reads gradient, parameter and moments, for norm and update; writes three
    return job.accumulate * (passes + 2 * held * FLOAT) + optimizer


def sent(job: Job, tokens: float, again: int) -> list[Collective]:
    """The collectives of a step by arithmetic, one for each kind and parameter."""
    wide, found = DTYPES[job.dtype], []
    batch = job.over(("batch", "length"))

    def add(kind: str, bytes_: float, count: int, names: Sequence[str]) -> None:
        size, nodes = job.group(names)
        if size > 1 and count:
            found.append(Collective(kind, int(bytes_), count, size, nodes))

    for leaf in leaves(job.spec):
        by_expert = [n for n in job.over(("experts",)) if "experts" in leaf.axes]
        by_stage = [n for n in job.over(("layers",)) if "layers" in leaf.axes]
        spread_over = [n for n in job.over(leaf.axes) if n in batch and n not in (*by_expert, *by_stage)]
        cut = job.parts(leaf.axes) // max(math.prod(job.sizes[n] for n in (*spread_over, *by_stage)), 1)
        whole, times = _per_layer(leaf) * wide / cut, _depth(leaf) * job.accumulate
        if by_stage:
            times = times // job.parts(("layers",)) * job.ticks
        add("all-gather", whole, times * 2, spread_over)
        add("reduce-scatter", whole, times, spread_over)
        rest = [n for n in batch if n not in (*spread_over, *by_expert, *by_stage)]
        add("all-reduce", whole / max(math.prod(job.sizes[n] for n in spread_over), 1), times, rest)
    row, passes = tokens * job.spec.width * wide, (4 + 2 * again) * job.accumulate
    stages, share = job.parts(("layers",)), job.parts(("layers",)) / job.microbatches
    add("collective-permute", row * share, 2 * job.ticks * job.accumulate, job.over(("layers",)))
    add("all-to-all", row * stages, 4 * job.accumulate, job.over(("layers",)))
    for chosen, layers in Counter(getattr(layer.mlp, "experts_per_token", 0) for layer in job.spec.layers).items():
        add("all-to-all", row * chosen, passes * layers if chosen else 0, job.over(("experts",)))
    tensor = [n for n in job.over(("ffn", "heads")) if n not in batch]
    add("all-reduce", row, passes * job.spec.depth, list(dict.fromkeys(tensor)))
    return found


# --- decoding --------------------------------------------------------------------------------------------------------


def decode(spec: Spec, on: str, nodes: int, batch: int, length: int, dtype: str = "bfloat16") -> dict[str, Any]:
    """A step of decoding, one token for each of `batch` rows that hold `length` tokens, spread evenly over all devices:
    its bytes a device, whether they fit, and a bound on its speed: the time to read weights and caches once.

    Of a layer's experts, those are read that some row has chosen, if all are equally likely. Links are not counted."""
    row, wide = instance(on), DTYPES[dtype]
    devices = nodes * row.devices
    weights = spec.param_count() * wide
    held = spec.cache_bytes(batch, length, dtype)
    read = 0.0
    for leaf in leaves(spec):
        if is_predictor(leaf) or (leaf.path == ("embed_VD",) and not spec.tied):
            continue
        share = 1 - (1 - _selected(leaf) / _experts(leaf)) ** batch
        read += math.prod(leaf.shape) * wide * share
    flops = 2.0 * spec.active_param_count() * batch
    busy = {
        "memory": (read + held) / devices / row.bandwidth.value,
        "compute": flops / devices / row.flops[dtype].value,
    }
    bound = max(busy, key=lambda name: busy[name])
    step = busy[bound]
    peak = (weights + held) / devices
    return {
        "instance": on,
        "devices": devices,
        "batch": batch,
        "length": length,
        "bytes": {"params": weights / devices, "cache": held / devices, "peak": peak},
        "memory": row.memory.value,
        "fits": peak <= row.memory.value,
        "estimates": {
            "seconds": {**busy, "least": step},
            "bound": bound,
            "tokens_per_second": batch / step,
            "tokens_per_second_a_row": 1 / step,
            "usd_per_billion_tokens": None
            if row.price is None
            else row.price.value * nodes / 3600 * step / batch * 1e9,
        },
    }


# --- candidates ------------------------------------------------------------------------------------------------------


def ordered(sizes: Sizes) -> Sizes:
    """The same mesh with its axes in the order of MESH_AXES, so that tensor and expert devices are neighbours."""
    found = {axis: sizes[axis] for axis in MESH_AXES if sizes.get(axis, 1) > 1}
    return found or {"data": 1}
