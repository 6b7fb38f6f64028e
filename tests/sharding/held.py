"""What a compiled program computes and holds on one device of a mesh, from the text of XLA's optimised program.

An array is held where an instruction outside of a fusion gives it: a fusion's own instructions live in registers. Which
array it is, its shape tells: each axis that matters has a size, or a prime factor, that nothing else in the model has.

    more of a stack   an array with the stacked layers' axis, larger than the device's own part of that parameter
    all experts       of expert > 1: an array with a weight of every expert of a layer
    whole vocabulary  of tensor > 1: an array with the vocabulary's whole axis: table, head, logits, their gradients
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from archzoo.layers.accounting import DEPTH
from archzoo.sharding.hlo import computations, runs
from archzoo.sharding.rules import parts

RUN = re.compile(r"\b(?:to_apply|body|condition|true_computation|false_computation|calls)=%?([\w.\-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
ARRAY = re.compile(r"\b[a-z]\w*\[([\d,]*)\]")
NUMBERS = re.compile(r"\bb?f\w*\[([\d,]*)\]")
CALLERS = ("while", "call", "conditional", "async-start")
"""Instructions whose computations are instructions like any other; those of a fusion or a reduction are not."""

Shape = tuple[int, ...]


class Signs(NamedTuple):
    """How axes are told apart. layers, experts, vocab: their sizes.  ffn, tokens: a prime factor of an expert's hidden
    units, and of the tokens of a row.
    """

    layers: int
    experts: int
    vocab: int
    ffn: int
    tokens: int


def arrays(text: str) -> Iterator[tuple[str, Shape]]:
    """Every array of numbers that a device holds at some time, indices apart, and the instruction that gives it."""
    entry, bodies = computations(text)
    seen, coming = set(), [entry]
    while coming:
        name = coming.pop()
        if name in seen:
            continue
        seen.add(name)
        for made in bodies[name]:
            for dims in NUMBERS.findall(made.shape):
                yield f"{made.op} {made.name}", tuple(int(n) for n in dims.split(",") if n)
            if made.op in CALLERS:
                coming += RUN.findall(made.rest)
                for names in BRANCHES.findall(made.rest):
                    coming += [each.strip().lstrip("%") for each in names.split(",")]


def too_much(text: str, leaves: Sequence[Any], rules: Any, sizes: Mapping[str, int], signs: Signs) -> list[str]:
    """The arrays in the program that no device should hold, in words. sizes: of the mesh."""
    stacked = [leaf for leaf in leaves if leaf.axes[0] in DEPTH and leaf.shape[0] == signs.layers]
    own = {_key(_own(leaf, rules, sizes)) for leaf in stacked}
    more = {_key(shape) for leaf in stacked for shape in _gathered(leaf, rules, sizes)} - own
    merged = {(math.prod(shape), n) for shape in more for n in range(2, len(shape))}
    merged -= {(math.prod(shape), n) for shape in own for n in range(1, 1 + len(shape))}

    def why(shape: Shape) -> str:
        count = math.prod(shape)
        weights = count % signs.tokens != 0
        as_one = weights and (count, len(_key(shape))) in merged
        if signs.layers in shape and (_key(shape) in more or as_one):
            return "more of a stack than the device's own"
        if sizes.get("expert", 1) > 1 and weights and signs.experts in shape and count % signs.ffn == 0:
            return "all experts of a layer"
        if sizes.get("tensor", 1) > 1 and any(n and n % signs.vocab == 0 for n in shape):
            return "the whole vocabulary"
        return ""

    found = {(reason, shape): by for by, shape in arrays(text) if (reason := why(shape))}
    return [f"{reason}: {list(shape)} of {by}" for (reason, shape), by in found.items()]


def _key(shape: Shape) -> Shape:
    """A shape whatever the order of its axes."""
    return tuple(sorted(n for n in shape if n > 1))


def _own(leaf: Any, rules: Any, sizes: Mapping[str, int]) -> Shape:
    cuts = [math.prod(sizes.get(name, 1) for name in names) for names in rules.over(leaf.axes)]
    return tuple(n // cut for n, cut in zip(leaf.shape, cuts, strict=True))


def _gathered(leaf: Any, rules: Any, sizes: Mapping[str, int]) -> Iterator[Shape]:
    """The device's own part of a stack with one or more of its axes whole."""
    own = _own(leaf, rules, sizes)
    for shape in product(*({part, n} for part, n in zip(own, leaf.shape, strict=True))):
        if shape != own:
            yield shape


# --- products --------------------------------------------------------------------------------------------------------


def flops(text: str, factor: int) -> tuple[int, int]:
    """Multiply-adds, times two, of the products of a program, those in loops as often as they run: (of arrays that all
    lack this factor in every axis, of others).
    """
    entry, bodies = computations(text)
    plain = others = 0
    for name, (count, _) in runs(entry, bodies).items():
        shapes = {made.name: made.shape for made in bodies[name]}
        for made in bodies[name]:
            if made.op == "dot":
                left, right = (dimensions(shapes[operand]) for operand in operands(made.rest))
                summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", made.rest)
                assert summed is not None
                inner = math.prod(left[int(i)] for i in summed[1].split(",") if i)
                of = count * 2 * math.prod(dimensions(made.shape)) * inner
                if any(n % factor == 0 for n in (*left, *right)):
                    others += of
                else:
                    plain += of
    return plain, others


def operands(rest: str) -> list[str]:
    """The names of what an instruction takes, with or without their shapes before them."""
    return re.findall(r"%([\w.\-]+)", rest[: rest.index(")")])


def dimensions(shape: str) -> list[int]:
    found = ARRAY.search(shape)
    assert found is not None, shape
    return [int(n) for n in found[1].split(",") if n]


def repeated(leaves: Sequence[Any], rules: Any, sizes: Mapping[str, int], tokens: int) -> int:
    """FLOPs that all devices together spend more than one does, on products that every tensor device does alike: those
    with a matrix that has no axis over tensor, a router's and the ones into latents, forward and both ways back.
    """
    from archzoo.layers.accounting import is_matrix, is_vocab

    alike = sum(
        math.prod(leaf.shape)
        for leaf in leaves
        if is_matrix(leaf) and not is_vocab(leaf) and not any("tensor" in names for names in rules.over(leaf.axes))
    )
    return (sizes.get("tensor", 1) - 1) * 6 * tokens * alike


def homes(tokens: int, choices: int, experts: int, rules: Any, sizes: Mapping[str, int]) -> float:
    """Rows that experts compute on a mesh where each device has them all, relative to one device's: rows have room in
    sixteens (layers/grouped.py), which are more of few tokens.
    """
    from archzoo.layers.grouped import AT_ONCE, room

    def rows(count: int) -> int:
        home, block = room(count, choices, experts)
        return experts * home + AT_ONCE * block

    devices = parts(rules, "batch", sizes) * parts(rules, "length", sizes)
    return devices * rows(tokens // devices) / rows(tokens)
