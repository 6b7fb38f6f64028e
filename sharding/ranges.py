"""Between which bounds the integers of a StableHLO program lie, as far as that follows from how they are made; and
whether a gather stays within its operand.

An interval a value, from constants, iotas, clamps and comparisons forward (Cousot & Cousot 1977, section 2). What a
program is given may be anything."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .loops import count_of, maker

Range = tuple[float, float]
"""The least and the greatest value, both included."""

Calls = tuple[Any, ...]
"""The calls, outermost first, that lead to a value."""

ANY: Range = (-math.inf, math.inf)
BOOLEAN: Range = (0, 1)

SAME = frozenset(
    f"stablehlo.{name}"
    for name in (
        "reshape", "broadcast_in_dim", "transpose", "slice", "dynamic_slice", "reverse", "convert", "gather",
        "optimization_barrier", "concatenate", "pad", "dynamic_update_slice",
    )
) | {"sdy.sharding_constraint"}  # fmt: skip
"""Operations that give what they take, of any operand but indices."""

DATA = {"gather": 1, "dynamic_slice": 1, "dynamic_update_slice": 2, "concatenate": None, "pad": 2}
"""How many of an operation's operands are data, where that is not one."""


class Program:
    """A lowered module: its operations in order, its functions, who calls them, and the range of each value."""

    def __init__(self, module: Any) -> None:
        self.module = module  # operations live as long as it does
        self.operations = [op for op in _walk(module.operation) if op.name != "builtin.module"]
        self.functions = {op.attributes["sym_name"].value: op for op in self.operations if op.name == "func.func"}
        self.callers: dict[str, list[Any]] = {}
        for op in self.operations:
            if op.name == "func.call":
                self.callers.setdefault(op.attributes["callee"].value, []).append(op)
        self._known: dict[Any, Range] = {}

    def range(self, value: Any, calls: Calls = ()) -> Range:
        """Bounds of an integer value, inside these calls of functions, none for all; ANY where nothing follows."""
        if (value, calls) not in self._known:
            self._known[value, calls] = ANY  # what depends on itself is not known
            self._known[value, calls] = _range(value, self, calls)
        return self._known[value, calls]


def _walk(op: Any) -> list[Any]:
    found = [op]
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                found += _walk(inner.operation)
    return found


def union(ranges: list[Range]) -> Range:
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else ANY


def _range(value: Any, program: Program, calls: Calls) -> Range:
    kind = str(getattr(value.type, "element_type", ""))
    found = _made(value, maker(value), program, calls)
    if kind == "i1":
        return max(found[0], 0), min(found[1], 1)
    return (max(found[0], 0), found[1]) if kind.startswith("ui") else found


def _made(value: Any, op: Any, program: Program, calls: Calls) -> Range:
    def of(value: Any) -> Range:
        return program.range(value, calls)

    if op is None:
        return _argument(value, program, calls)
    name = op.name.removeprefix("stablehlo.")
    if name in RANGES:
        return RANGES[name]([of(operand) for operand in op.operands])
    if op.name in SAME:
        return union([of(operand) for operand in list(op.operands)[: DATA.get(name, 1)]])
    place = next(i for i, result in enumerate(op.results) if result == value)
    if name == "constant":
        return _constant(op)
    if name == "iota":
        return 0, value.type.shape[int(op.attributes["iota_dimension"])] - 1
    if name == "compare":
        return _compare(op, of)
    if name == "chlo.top_k" and place == 1:
        return 0, op.operands[0].type.shape[-1] - 1
    if name == "sort":
        return of(op.operands[place])
    if name == "reduce" and len(op.results) == 1:
        body = [inner.operation.name for inner in op.regions[0].blocks[0].operations]
        plain = body[0] in ("stablehlo.minimum", "stablehlo.maximum") and len(body) == 2
        plain = plain and 0 not in op.operands[0].type.shape
        return RANGES[body[0].removeprefix("stablehlo.")]([of(operand) for operand in op.operands]) if plain else ANY
    if name == "func.call":
        block = program.functions[op.attributes["callee"].value].regions[0].blocks[0]
        return program.range(list(block.operations)[-1].operation.operands[place], (*calls, op))
    if name == "while":
        return _argument(op.regions[1].blocks[0].arguments[place], program, calls, after=True)
    return ANY


def _argument(value: Any, program: Program, calls: Calls, after: bool = False) -> Range:
    """Of a function's argument, in its call, else over all of them; of what a loop carries, if it counts or stays."""
    block, owner = value.owner, value.owner.owner.operation
    place = next(i for i, argument in enumerate(block.arguments) if argument == value)
    if owner.name == "func.func":
        if calls:
            return program.range(calls[-1].operands[place], calls[:-1])
        callers = program.callers.get(owner.attributes["sym_name"].value, [])
        return union([program.range(call.operands[place]) for call in callers])
    if owner.name != "stablehlo.while":
        return ANY
    body = owner.regions[1].blocks[0]
    if list(body.operations)[-1].operation.operands[place] == body.arguments[place]:
        return program.range(owner.operands[place], calls)
    counted = count_of(owner)
    if counted is None or counted[0] != place:
        return ANY
    start, end = program.range(counted[1], calls), program.range(counted[2], calls)
    return start[0], end[1] if after else max(end[1] - 1, start[0])


def _constant(op: Any) -> Range:
    kind = str(op.results[0].type.element_type)
    if not kind.lstrip("u").startswith("i") or not op.results[0].type.has_static_shape:
        return ANY
    attribute = op.attributes["value"]
    if attribute.is_splat:
        number = int(getattr(attribute.get_splat_value(), "value", 0))
        return number, number
    numbers = np.asarray(attribute)
    return (int(numbers.min()), int(numbers.max())) if numbers.size else ANY


def _compare(op: Any, of: Callable[[Any], Range]) -> Range:
    """(0, 0) or (1, 1) where a comparison with < or >= is decided by its operands' ranges."""
    direction = str(op.attributes["comparison_direction"])
    (low, high), (least, greatest) = (of(operand) for operand in op.operands)
    if not any(way in direction for way in ("LT", "GE")):
        return BOOLEAN
    below = (1, 1) if high < least else (0, 0) if low >= greatest else BOOLEAN
    return below if "LT" in direction else (1 - below[1], 1 - below[0])


def _select(given: list[Range]) -> Range:
    chosen, yes, no = given
    return no if chosen == (0, 0) else yes if chosen == (1, 1) else union([yes, no])


def _multiply(given: list[Range]) -> Range:
    (a, b), (c, d) = given
    if not all(map(math.isfinite, (a, b, c, d))):
        return ANY
    products = [x * y for x in (a, b) for y in (c, d)]
    return min(products), max(products)


def _clamp(given: list[Range]) -> Range:
    least, value, most = given
    return max(least[0], min(value[0], most[0])), min(most[1], max(value[1], least[1]))


RANGES: dict[str, Callable[[list[Range]], Range]] = {
    "add": lambda given: (given[0][0] + given[1][0], given[0][1] + given[1][1]),
    "subtract": lambda given: (given[0][0] - given[1][1], given[0][1] - given[1][0]),
    "multiply": _multiply,
    "minimum": lambda given: (min(low for low, _ in given), min(high for _, high in given)),
    "maximum": lambda given: (max(low for low, _ in given), max(high for _, high in given)),
    "clamp": _clamp,
    "select": _select,
}
"""What an operation gives for the ranges that it takes."""


def indices_within(op: Any, program: Program) -> bool:
    """Whether a gather's or scatter's indices are sure to lie within its operand."""
    from jax.extend.mlir.dialects import stablehlo

    operand, indices = op.operands[0], op.operands[1]
    numbers: Any
    if op.name == "stablehlo.gather":
        numbers = stablehlo.GatherDimensionNumbers(op.attributes["dimension_numbers"])
        dims, sizes = numbers.start_index_map, [int(n) for n in op.attributes["slice_sizes"]]
        most = [operand.type.shape[d] - sizes[d] for d in dims]
    else:
        numbers = stablehlo.ScatterDimensionNumbers(op.attributes["scatter_dimension_numbers"])
        dims = numbers.scattered_dims_to_operand_dims
        most = [operand.type.shape[d] - 1 for d in dims]
    ranges = _of_each(indices, len(dims), numbers.index_vector_dim, program)
    return all(low >= 0 and high <= bound for (low, high), bound in zip(ranges, most, strict=True))


def _of_each(indices: Any, count: int, axis: int, program: Program) -> list[Range]:
    """The range of each component of the index vectors; of joined ones, that of each part."""
    made = maker(indices)
    if count > 1 and made is not None and made.name == "stablehlo.concatenate":
        parts = list(made.operands)
        if int(made.attributes["dimension"]) == axis and len(parts) == count:
            return [program.range(part) for part in parts]
    return [program.range(indices)] * count
