"""Which loops of a StableHLO program run a number of times that is known when it is compiled.

Counted is a loop whose condition compares one carried value with a constant, while that value starts at a constant and
changes by one: what `lax.scan` and `lax.fori_loop` with fixed bounds lower to."""

from typing import Any

CONSTANT, STEPS = "stablehlo.constant", ("stablehlo.add", "stablehlo.subtract")


def is_counted(loop: Any, program: Any) -> bool:
    return count_of(loop) is not None


def count_of(loop: Any) -> tuple[int, Any, Any] | None:
    """(which carried value counts, where it starts, where it ends): two values of the program; None if none counts."""
    condition, body = (region.blocks[0] for region in loop.regions)
    compare = maker(list(condition.operations)[-1].operation.operands[0])
    if compare is None or compare.name != "stablehlo.compare":
        return None
    counter, end = compare.operands
    if maker(counter) is not None:
        counter, end = end, counter
    place = _place(counter, condition)
    if place is None or not _is_constant(_before(end, condition, body, loop)):
        return None
    step = maker(list(body.operations)[-1].operation.operands[place])
    start = loop.operands[place]
    if step is None or step.name not in STEPS or not _is_constant(start):
        return None
    by = [value for value in step.operands if value != body.arguments[place]]
    counts = len(by) == 1 and _is_constant(by[0])
    return (place, start, _before(end, condition, body, loop)) if counts else None


def maker(value: Any) -> Any:
    """The operation that gives a value; None for an argument of a block."""
    owner = value.owner
    return None if hasattr(owner, "arguments") and hasattr(owner, "operations") else owner.operation


def _place(value: Any, block: Any) -> int | None:
    return next((i for i, argument in enumerate(block.arguments) if argument == value), None)


def _before(value: Any, condition: Any, body: Any, loop: Any) -> Any:
    """What a value of the condition is before the loop, where the loop hands it on as it is."""
    place = _place(value, condition)
    if place is None:
        return value
    handed_on = list(body.operations)[-1].operation.operands[place] == body.arguments[place]
    return loop.operands[place] if handed_on else value


def _is_constant(value: Any) -> bool:
    made = maker(value)
    return made is not None and made.name == CONSTANT
