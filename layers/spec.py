"""Specs as plain data: losslessly to and from JSON, and edited by path.

A layer spec is any frozen dataclass that offers

    .shell(execution) -> nn.Module, called (x_BLD, context, cache) -> (y_BLD, new_entries, aux)
    .cache(batch, length, dtype) -> {name: ShapeDtypeStruct}     what one layer keeps between calls ({} if nothing)
    .flops(length) -> float         forward FLOPs a token beyond its weight matmuls (those follow from parameter
    shapes)

where its parameters and cache entries carry their axes in their names (`wq_DKGE`, `k_BKSE`) and the file that defines
it holds the legend, `AXES = {"D": "width", ...}`. A layer with an "experts" axis also offers `.experts_per_token`.

A spec anywhere in a layer may leave to the model what that knows: its class names such fields, OF_MODEL = ("width",),
and where they are None they are the model's.
"""

import dataclasses
import importlib.util
import json
import operator
import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax

S = TypeVar("S")


class Context(NamedTuple):
    """What a layer may know about its tokens besides their hidden states.

    positions_BL: int32, a token's index in its own document; negative for the left padding of a prompt.
    segments_BL: int32, which packed document a token belongs to, 0 for padding; None when a row is one document.
    tokens_BL: int32, the token ids.
    slots_L: int32, a token's place in the row: its index, or in a cache the slot it will be written to.
    pad_B: int32, how many leading slots of a row are padding; None without a cache.
    lent: by name, what earlier layers handed to later ones: a layer hands on what is under "lent" in its new entries,
    and names it in its spec's `lends`.
    room: for how many tokens the cache has slots; None without a cache, where the row is all there is.
    own_BLP: what a model with per-layer inputs gives to this layer of its tokens (per_layer.py), or None.
    """

    positions_BL: jax.Array
    segments_BL: jax.Array | None
    tokens_BL: jax.Array
    slots_L: jax.Array
    pad_B: jax.Array | None
    lent: Any = None
    own_BLP: jax.Array | None = None
    room: int | jax.Array | None = None

    def real_BL(self) -> jax.Array:
        """bool [batch, length]: the tokens that are not padding."""
        return self.positions_BL >= 0 if self.segments_BL is None else self.segments_BL > 0


def require(owner: Any, holds: bool, field: str, remedy: str) -> None:
    """Raises a ValueError that names the spec, the field and its value, unless it holds."""
    if not holds:
        raise ValueError(f"{type(owner).__name__}.{field} is {getattr(owner, field)!r}: {remedy}")


def of_model(node: S, model: Mapping[str, int]) -> S:
    """The spec, or tuple of specs, with what its parts leave to a model of this width and vocab."""
    if isinstance(node, tuple):
        parts: Any = tuple(of_model(part, model) for part in node)
        return node if all(map(operator.is_, parts, node)) else parts
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    found = {name: model[name] for name in getattr(node, "OF_MODEL", ()) if getattr(node, name) is None}
    for field in dataclasses.fields(node):
        whole = of_model(part := getattr(node, field.name), model)
        found |= {} if whole is part else {field.name: whole}
    return dataclasses.replace(node, **found) if found else node


# --- JSON ------------------------------------------------------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """Specs to dicts with a "type", tuples to lists, ... to "...": what json.dumps takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {"type": _type_name(type(value))}
        return plain | {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return "..." if value is Ellipsis else value


def from_plain(plain: Any, where: str = "spec") -> Any:
    """The inverse of `to_plain`. Raises ValueError naming the place and the type or field it does not know."""
    if isinstance(plain, list):
        return tuple(from_plain(item, f"{where}[{i}]") for i, item in enumerate(plain))
    if not isinstance(plain, dict):
        return ... if plain == "..." else plain
    if not isinstance(plain.get("type"), str):
        raise ValueError(f"{where} has no 'type'; was this JSON written by Spec.to_json?")
    cls = _type_named(plain["type"], where)
    values = {name: from_plain(item, f"{where}.{name}") for name, item in plain.items() if name != "type"}
    unknown = values.keys() - {f.name for f in dataclasses.fields(cls)}
    missing = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING} - values.keys()
    if unknown or missing:
        raise ValueError(f"{where}: {plain['type']} has unknown fields {sorted(unknown)} and lacks {sorted(missing)}")
    return _built(cls, values, f"{where}: {plain['type']}")


_PACKAGE = __name__.rpartition(".")[0]


def _type_name(cls: type) -> str:
    """`.attention:Attention` inside this package, `their.module:TheirAttention` for a user's own spec."""
    return f"{cls.__module__.removeprefix(_PACKAGE)}:{cls.__qualname__}"


def _type_named(name: str, where: str) -> Any:
    """A file of this room is imported; others are looked for among what is: reading JSON runs nobody else's code."""
    module, _, cls = name.partition(":")
    if re.fullmatch(r"\.\w+", module) and importlib.util.find_spec(module, _PACKAGE):
        importlib.import_module(module, _PACKAGE)
    found = getattr(sys.modules.get(_PACKAGE + module if module.startswith(".") else module), cls, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(
            f"{where} has type {name!r}, which is not a known spec; import the module that defines it first"
        )
    return found


def _built(build: Callable[..., Any], values: dict[str, Any], where: str) -> Any:
    """A spec's fields from a file or a flag: a value of the wrong type is refused like any other."""
    try:
        return build(**values)
    except TypeError as error:
        given = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in values.items())
        raise ValueError(f"{where} cannot be made with {given}: {error}") from None


def parse_json(text: str) -> Any:
    """Raises ValueError in one line for text that is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None


# --- paths -----------------------------------------------------------------------------------------------------------


class Edit(NamedTuple):
    """A value for the fields that `path` leads to; `steps` are those still to go."""

    path: str
    steps: tuple[str, ...]
    value: Any


def replace(spec: S, changes: dict[str, Any]) -> S:
    """Sets fields by path: `depth`, `attention.window` (in every pattern entry that has it), `attention[0].window`
    (in one). Changes to one spec are made at once, so that they need to fit only together.

    Raises ValueError listing the paths there are when one matches nothing.
    """
    edits = [Edit(path, tuple(path.replace("[", ".[").split(".")), value) for path, value in changes.items()]
    matched: set[str] = set()
    edited: S = _edited(spec, edits, matched)
    for path in changes:
        if path not in matched:
            raise ValueError(f"{path!r} matches nothing in this spec; its paths are {', '.join(sorted(paths(spec)))}")
    return edited


def paths(spec: Any, prefix: str = "") -> dict[str, Any]:
    """Every path that `replace` takes and the value there; pattern entries as `attention[0]`, a single one as
    `attention`.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        value, path = getattr(spec, field.name), prefix + field.name
        entries = value if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)) else (value,)
        for i, entry in enumerate(entries):
            name = path if len(entries) == 1 else f"{path}[{i}]"
            found |= paths(entry, name + ".") if dataclasses.is_dataclass(entry) else {name: entry}
    return found


def _edited(node: Any, edits: list[Edit], matched: set[str]) -> Any:
    """The node with every edit that leads to it or below it; their paths join `matched`."""
    for edit in edits:
        if not edit.steps:
            node = edit.value
            matched.add(edit.path)
    edits = [edit for edit in edits if edit.steps]
    if isinstance(node, tuple):
        return tuple(_edited(entry, edits + _below(edits, f"[{i}]"), matched) for i, entry in enumerate(node))
    names = [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
    below = {name: _below(edits, name) for name in names}
    values = {name: _edited(getattr(node, name), below[name], matched) for name in names if below[name]}
    return _built(partial(dataclasses.replace, node), values, type(node).__name__) if values else node


def _below(edits: list[Edit], step: str) -> list[Edit]:
    """What is left of the edits that lead through this step."""
    return [edit._replace(steps=edit.steps[1:]) for edit in edits if edit.steps[0] == step]
