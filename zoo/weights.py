"""Weight maps: rows of data that say where each Hugging Face tensor lies in the parameters, read in both directions.

    ("model.layers.{l}.self_attn.q_proj.weight", "(K G E) D", "attention/wq_DKGE")

The layout spells the tensor's dimensions in the letters of the parameter's name: brackets ( ) merge axes into one
dimension, and [ ] concatenates what belongs to several parameters, as in DeepSeek's "(H [N V]) C" -> wk_CHN, wv_CHV
or a fused "[(K G E) (K E) (K E)] D"; parts of no axes take turns, as in gpt-oss's "(F [() ()])". {l} and {e} count
layers and experts, which are stacked axes of the parameters. A row holds in the layers that have its parameters.

A module of multi-token prediction has the names of a layer beyond the model's depth, or where rows of parameters
`mtp_{m}/` say so, names of its own, in which {m} counts the modules."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..layers.accounting import leaves
from ..layers.decoder import Spec

Array = NDArray[Any]


class Row(NamedTuple):
    """One line of a weight map: tensor name, layout, and the parameters it holds."""

    name: str
    layout: str
    parameters: tuple[str, ...]


def rows(*lines: tuple[str, ...]) -> tuple[Row, ...]:
    """A weight map from (name, layout, parameter, ...) lines."""
    return tuple(Row(name, layout, tuple(parameters)) for name, layout, *parameters in lines)


class Part(NamedTuple):
    """A parameter's share of a tensor: its path in the tree, its place in the stacked axes, and the axes and sizes
    that remain.
    """

    path: tuple[str, ...]
    place: tuple[int, ...]
    axes: str
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """One Hugging Face tensor: its name, layout, shape, and the parameters it holds."""

    name: str
    layout: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def split(self, tensor: Array) -> list[Array]:
        """The tensor's parts, each with the axes of its parameter; views of it."""
        return [view.transpose(order) for view, order in self._parts(tensor)]

    def join(self, pieces: Sequence[Array]) -> Array:
        """The inverse of `split`."""
        tensor = np.empty(self.shape, pieces[0].dtype)
        for (view, order), piece in zip(self._parts(tensor), pieces, strict=True):
            view.transpose(order)[...] = piece
        return tensor

    def _parts(self, tensor: Array) -> Iterator[tuple[Array, list[int]]]:
        """A view of each part with the axes of the layout, and how to transpose it to the axes of its parameter."""
        layout, start = parse(self.layout), 0
        sizes = [_sizes(part) for part in self.parts]
        lengths = [math.prod(s[a] for a in alt) for s, alt in zip(sizes, layout.alternatives, strict=True)]
        before, after = ([sizes[0][a] for a in axes] for axes in (layout.before, layout.after))
        whole = tensor.reshape(*before, sum(lengths), *after)
        for part, size, alternative, length in zip(self.parts, sizes, layout.alternatives, lengths, strict=True):
            view = whole[(slice(None),) * len(before) + (slice(start, start + length),)]
            axes = layout.before + alternative + layout.after
            yield view.reshape([size[a] for a in axes]), [axes.index(a) for a in part.axes]
            start += length


class Layout(NamedTuple):
    """A parsed layout: the axes before the concatenation, the axes of each alternative in it, the axes after, and
    the dimensions.
    """

    before: str
    alternatives: tuple[str, ...]
    after: str
    dimensions: tuple[str, ...]


@cache
def parse(layout: str) -> Layout:
    """Reads the notation above. Without a concatenation there is one alternative, of no axes."""
    concat = re.search(r"\[(.*)\]", layout)
    inside = concat.group(1) if concat else ""
    alternatives = tuple(re.sub(r"\W", "", alt) for alt in re.findall(r"\([^)]*\)|\w", inside)) or ("",)
    outer = layout[: concat.start()] + "*" + layout[concat.end() :] if concat else layout
    dimensions = tuple(re.sub(r"[^\w*]", "", dim) for dim in re.findall(r"\([^)]*\)|[\w*]", outer))
    before, _, after = "".join(dimensions).partition("*")
    return Layout(before, alternatives, after, dimensions)


def entries(spec: Spec, weight_map: Iterable[Row]) -> dict[str, Entry]:
    """Every tensor that a checkpoint of this spec holds, by name.

    Raises ValueError when the map leaves a parameter out or names one twice: then the spec is not of this family.
    """
    found: dict[str, Entry] = {}
    covered: dict[tuple[Any, ...], str] = {}
    shapes = {leaf.path: leaf.shape for leaf in leaves(spec)}
    weight_map = tuple(weight_map)
    for base, index, numbers in [((), (), {}), *_layers(spec), *_modules(spec, weight_map)]:
        for row in weight_map:
            if ("{l}" in row.name, is_of_module(row)) != ("l" in numbers, "m" in numbers):
                continue
            paths = [(*base, *parameter.format(**numbers).split("/")) for parameter in row.parameters]
            if not all(path in shapes for path in paths):
                continue
            count = shapes[paths[0]][len(index)] if "{e}" in row.name else 1
            for e in range(count):
                at = (*index, e) if "{e}" in row.name else index
                parts = tuple(_part(path, at, shapes[path]) for path in paths)
                name = row.name.format(**numbers, e=e)
                found[name] = Entry(name, row.layout, _shape(row.layout, parts), parts)
                for part in parts:
                    key = (part.path, part.place)
                    if key in covered:
                        raise ValueError(
                            f"tensors {covered[key]!r} and {name!r} are both mapped to {'/'.join(part.path)}"
                        )
                    covered[key] = name
    mapped = {path for path, _ in covered}
    missing = ["/".join(path) for path in shapes if path not in mapped]
    if missing:
        raise ValueError(f"no tensor of this family holds the parameter {missing[0]}" + and_more(missing))
    return found


EMBEDDING_AGAIN = "mtp_{m}/embed_VD"
"""In a row: the model's embedding, which a module does not have as a parameter."""


def is_of_module(row: Row) -> bool:
    """Whether it says where a module of multi-token prediction lies, under a name of its own."""
    return row.parameters[0].startswith("mtp_{m}/")


def of_modules(weight_map: Iterable[Row], *renamed: tuple[str, str]) -> tuple[Row, ...]:
    """The rows of a layer as those of the layer in a module, with these parts of the tensors' names replaced."""
    found = []
    for name, layout, parameters in weight_map:
        for old, new in renamed:
            name = name.replace(old, new)
        found.append(Row(name, layout, tuple(f"mtp_{{m}}/layer/{parameter}" for parameter in parameters)))
    return tuple(found)


def modules_in(names: Iterable[str], weight_map: Iterable[Row]) -> int:
    """How many modules of multi-token prediction these tensors are of, if modules have names of their own."""
    own = [row.name for row in weight_map if is_of_module(row) and "{e}" not in row.name]
    known = re.compile("|".join(re.escape(name).replace(r"\{m\}", r"(\d+)") for name in own) or r"(?!)")
    numbers = [next(filter(None, match.groups()), "0") for match in map(known.fullmatch, names) if match]
    return 1 + max(map(int, numbers), default=-1)


def copies(spec: Spec, weight_map: Iterable[Row]) -> dict[str, str]:
    """Tensors that a checkpoint holds twice -> those that they repeat: a module of multi-token prediction that has the
    names of a layer has the model's embedding and head again, one with names of its own what its rows say.
    """
    embedding = "model.embed_tokens.weight"
    if own := [row for row in weight_map if is_of_module(row)]:
        again = [row.name for row in own if row.parameters == (EMBEDDING_AGAIN,)]
        return {name.format(m=k): embedding for name in again for k in range(spec.mtp.depth if spec.mtp else 0)}
    of_a_module = {"embed_tokens": embedding, "shared_head.head": embedding if spec.tied else "lm_head.weight"}
    depths = range(spec.depth, spec.depth + (spec.mtp.depth if spec.mtp else 0))
    return {f"model.layers.{i}.{name}.weight": of for i in depths for name, of in of_a_module.items()}


def and_more(names: Sequence[str]) -> str:
    """How many names follow the first one, for a message that gives only that."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _layers(spec: Spec) -> list[tuple[tuple[str, ...], tuple[int, ...], dict[str, int]]]:
    """(path of the layer in the tree, its index in the stack, its depth as {l}), in order of depth."""
    places = [
        ((f"run_{r}", f"layer_{p}"), (i,), run.depth_of(p, i))
        for r, run in enumerate(spec.runs)
        for p in range(len(run.period))
        for i in range(run.repeats)
    ]
    return [(path, index, {"l": depth}) for path, index, depth in sorted(places, key=lambda place: place[2])]


def _modules(spec: Spec, weight_map: Iterable[Row]) -> list[tuple[tuple[str, ...], tuple[int, ...], dict[str, int]]]:
    """Modules of multi-token prediction, in the same way; one that has the names of a layer, and the layer in it, comes
    after the last one.
    """
    count = spec.mtp.depth if spec.mtp else 0
    if any(map(is_of_module, weight_map)):
        return [((), (), {"m": k}) for k in range(count)]
    return [((f"mtp_{k}", *of), (), {"l": spec.depth + k}) for k in range(count) for of in ((), ("layer",))]


def _part(path: tuple[str, ...], index: tuple[int, ...], shape: tuple[int, ...]) -> Part:
    letters = path[-1].rpartition("_")[2]
    stacked_experts = len(index) - 1 if path[0].startswith("run_") else len(index)
    return Part(path, index, letters[max(stacked_experts, 0) :], shape[len(index) :])


def _sizes(part: Part) -> Mapping[str, int]:
    return dict(zip(part.axes, part.shape, strict=True))


def _shape(layout: str, parts: Sequence[Part]) -> tuple[int, ...]:
    parsed, sizes = parse(layout), [_sizes(part) for part in parts]
    total = sum(math.prod(s[a] for a in alt) for s, alt in zip(sizes, parsed.alternatives, strict=True))
    return tuple(math.prod(total if a == "*" else sizes[0][a] for a in dim) for dim in parsed.dimensions)
