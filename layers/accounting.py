"""Counting from shapes and axes: parameters, active parameters, FLOPs; and which parameters are matrices, and of
what.

Everything here follows from the names of parameters (`wq_DKGE`) and the legend of the file that declares them, never
from the number of dimensions: a stacked norm scale has two and is no matrix."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax

_HEADS = ("kv_heads", "q_per_kv", "head_dim", "nope_dim", "value_dim", "taps")
FEATURES = dict.fromkeys(_HEADS, "heads") | {"streams": "width"}
"""Axes that together are one feature space: a matrix maps between two of those.

An axis that is not listed is one by itself. The taps of a convolution by channel (convolution.py) map none to another.
"""

DEPTH = ("layers", "few_layers")
"""Axes over the repeats of a run: of the deepest one, which may be cut among stages (pipeline.py), and of the others.
"""

STACKED = (*DEPTH, "experts")
"""Axes over independent copies."""


class Model(Protocol):
    """What is counted: a Spec (decoder.py), whose own methods count with these functions."""

    @property
    def tied(self) -> bool: ...
    @property
    def layers(self) -> Sequence[Any]: ...
    @property
    def part(self) -> "Part": ...
    @property
    def shapes(self) -> Any: ...
    def __hash__(self) -> int: ...


class Leaf(NamedTuple):
    """A parameter: where it is, its shape, its logical axes, the spec of the layer it belongs to, and whether the model
    runs without it.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    owner: Any
    beside: bool

    def spaces(self) -> list[str]:
        """The feature spaces it maps from and to, in order: two for a matrix, one for a scale or bias."""
        return list(dict.fromkeys(FEATURES.get(a or "", a or "") for a in self.axes if a not in STACKED))


class Part(NamedTuple):
    """A part of the parameter tree: whose parameters it holds, and which parts below it are of other owners.

    owner: a spec, in whose file the legend of its parameters is. A part that `parts` does not name belongs to the
    owner's field of that name, if it has one, else to the owner.  stacked: axes in front of all its parameters.
    beside: whether the model runs without it."""

    owner: Any
    parts: Mapping[str, "Part"] = MappingProxyType({})
    stacked: tuple[str, ...] = ()
    beside: bool = False


@cache
def leaves(spec: Model) -> tuple[Leaf, ...]:
    """Every parameter of the model, in the order of its tree."""
    return tuple(_leaves(spec.shapes, spec.part, ()))


def _leaves(tree: Any, part: Part, path: tuple[str, ...]) -> Iterator[Leaf]:
    legend: dict[str, str] = getattr(sys.modules[type(part.owner).__module__], "AXES", {})
    for name, below in tree.items():
        if hasattr(below, "shape"):
            letters, own = name.rpartition("_")[2], len(below.shape) - len(part.stacked)
            named = len(letters) == own and set(letters) <= set(legend)
            axes = tuple(legend[letter] for letter in letters) if named else (None,) * own
            yield Leaf((*path, name), below.shape, (*part.stacked, *axes), part.owner, part.beside)
        else:
            inner = part.parts.get(name) or Part(getattr(part.owner, name, part.owner))
            inner = inner._replace(stacked=part.stacked + inner.stacked, beside=part.beside or inner.beside)
            yield from _leaves(below, inner, (*path, name))


def tree_of(spec: Model, value: Callable[[Leaf], Any]) -> Any:
    """A tree like the parameters, of a value computed from each."""
    values = {leaf.path: value(leaf) for leaf in leaves(spec)}
    return jax.tree_util.tree_map_with_path(lambda path, _: values[tuple(key.key for key in path)], spec.shapes)


def axes(spec: Model) -> Any:
    """The tree of logical axes, a tuple of names for each parameter: what shardings, optimizer masks and layouts
    follow from.
    """
    return tree_of(spec, lambda leaf: leaf.axes)


def is_matrix(leaf: Leaf) -> bool:
    """Whether it maps one feature space to another: what weight decay and Muon apply to."""
    return len(leaf.spaces()) == 2


def is_predictor(leaf: Leaf) -> bool:
    """Whether it belongs to multi-token prediction (mtp.py), which the model runs without."""
    return leaf.beside


def is_vocab(leaf: Leaf) -> bool:
    """Whether it is the embedding or the head."""
    return "vocab" in leaf.axes


def input_axes(leaf: Leaf) -> tuple[int, ...]:
    """Of a matrix, the indices of the axes it sums over; its outputs are the other ones that are not stacked.

    Matrices are [in, out], those of experts [out, in] (expert.py).
    """
    inputs = leaf.spaces()[-1 if "experts" in leaf.axes else 0]
    return tuple(i for i, a in enumerate(leaf.axes) if a not in STACKED and FEATURES.get(a or "", a or "") == inputs)


def output_axes(leaf: Leaf) -> tuple[int, ...]:
    inputs = input_axes(leaf)
    return tuple(i for i, a in enumerate(leaf.axes) if a not in STACKED and i not in inputs)


def param_count(spec: Model, mtp: bool = False) -> int:
    return sum(math.prod(leaf.shape) for leaf in leaves(spec) if mtp or not is_predictor(leaf))


def active_param_count(spec: Model) -> int:
    own = [leaf for leaf in leaves(spec) if not is_predictor(leaf)]
    return sum(math.prod(leaf.shape) * _selected(leaf) // _experts(leaf) for leaf in own)


def flops_per_token(spec: Model, length: int) -> float:
    """2 a multiply-add, experts that are selected only, look-ups of embeddings not, the head counted also where
    tied.
    """
    own = [leaf for leaf in leaves(spec) if not is_predictor(leaf)]
    head = ("embed_VD",) if spec.tied else ("head_DV",)
    weights = [leaf for leaf in own if is_matrix(leaf) and (not is_vocab(leaf) or leaf.path == head)]
    products = sum(2 * math.prod(leaf.shape) * _selected(leaf) / _experts(leaf) for leaf in weights)
    return float(products + sum(layer.attention.flops(length) + layer.mlp.flops(length) for layer in spec.layers))


def _experts(leaf: Leaf) -> int:
    return leaf.shape[leaf.axes.index("experts")] if "experts" in leaf.axes else 1


def _selected(leaf: Leaf) -> int:
    return int(leaf.owner.experts_per_token) if "experts" in leaf.axes else 1
