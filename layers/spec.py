"""Specs as plain data: losslessly to and from JSON, and edited by path.

A layer spec is any frozen dataclass that offers

    .shell(execution) -> nn.Module, called (x_BLD, context, cache) -> (y_BLD, new_entries, aux)
    .cache(batch, length, dtype) -> {name: ShapeDtypeStruct}     what one layer keeps between calls ({} if nothing)
    .flops(length) -> float         forward FLOPs a token beyond its weight matmuls (those follow from parameter
    shapes)

where its parameters and cache entries carry their axes in their names (`wq_DKGE`, `k_BSKE`) and the file that defines
it holds the legend, `AXES = {"D": "width", ...}`. A layer with an "experts" axis also offers `.experts_per_token`.
"""

import dataclasses
import json
import sys
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
    """

    positions_BL: jax.Array
    segments_BL: jax.Array | None
    tokens_BL: jax.Array
    slots_L: jax.Array
    pad_B: jax.Array | None

    def real_BL(self) -> jax.Array:
        """bool [batch, length]: the tokens that are not padding."""
        return self.positions_BL >= 0 if self.segments_BL is None else self.segments_BL > 0


def require(owner: Any, holds: bool, field: str, remedy: str) -> None:
    """Raises a ValueError that names the spec, the field and its value, unless it holds."""
    if not holds:
        raise ValueError(f"{type(owner).__name__}.{field} is {getattr(owner, field)!r}: {remedy}")


# --- JSON
# ---------------------------------------------------------------------------------------------------------------


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
    return cls(**values)


_PACKAGE = __name__.rpartition(".")[0]


def _type_name(cls: type) -> str:
    """`attention:Attention` inside this package, `their.module:TheirAttention` for a user's own spec."""
    return f"{cls.__module__.removeprefix(_PACKAGE + '.')}:{cls.__qualname__}"


def _type_named(name: str, where: str) -> Any:
    """Only modules that are already imported are looked at: reading JSON never imports, and so never runs,
    anything.
    """
    module, _, cls = name.partition(":")
    found = getattr(sys.modules.get(f"{_PACKAGE}.{module}") or sys.modules.get(module), cls, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(
            f"{where} has type {name!r}, which is not a known spec; import the module that defines it first"
        )
    return found


def parse_json(text: str) -> Any:
    """Raises ValueError in one line for text that is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None


# --- paths
# --------------------------------------------------------------------------------------------------------------


def replace(spec: S, changes: dict[str, Any]) -> S:
    """Sets fields by path: `depth`, `attention.window` (in every pattern entry that has it), `attention[0].window`
    (in one).

    Raises ValueError listing the paths there are when one matches nothing.
    """
    direct = {path: value for path, value in changes.items() if "." not in path and "[" not in path}
    for path in direct:
        if not hasattr(spec, path):
            raise ValueError(_no_match(spec, path))
    spec = dataclasses.replace(spec, **direct)  # type: ignore[type-var]
    for path, value in changes.items():
        if path not in direct:
            edited = _set(spec, path.replace("[", ".[").split("."), value)
            if edited is None:
                raise ValueError(_no_match(spec, path))
            spec = edited
    return spec


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


def _set(node: Any, steps: list[str], value: Any) -> Any:
    """The node with the value set below it, or None if nothing there matches."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(node, tuple):
        chosen = int(step[1:-1]) if step[:1] == "[" and step[1:-1].isdigit() else None
        if chosen is not None:
            edits = [_set(entry, rest, value) if i == chosen else None for i, entry in enumerate(node)]
        else:
            edits = [_set(entry, steps, value) for entry in node]
        if all(edit is None for edit in edits):
            return None
        return tuple(entry if edit is None else edit for entry, edit in zip(node, edits, strict=True))
    if not dataclasses.is_dataclass(node) or step not in {f.name for f in dataclasses.fields(node)}:
        return None
    if not rest:
        return dataclasses.replace(node, **{step: value})  # type: ignore[type-var]
    below = _set(getattr(node, step), rest, value)
    return None if below is None else dataclasses.replace(node, **{step: below})  # type: ignore[type-var]


def _no_match(spec: Any, path: str) -> str:
    return f"{path!r} matches nothing in this spec; its paths are {', '.join(sorted(paths(spec)))}"
