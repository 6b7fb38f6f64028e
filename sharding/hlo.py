"""Which collectives a compiled program runs, how often, over how many bytes, and among which devices.

Read from the text of XLA's optimised program: `known_trip_count` of a loop's backend_config multiplies what is in its
body; groups of devices are written out (`{{0,1},{2,3}}`), as an iota (`[4,2]<=[2,4]T(1,0)`: arange(8) reshaped to
[2, 4], transposed, cut into 4 rows of 2), or as axes of a mesh (`mesh['a'=4,'b'=2], device_ids=([4,2]T(1,0)) {'b'}`).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Group = np.ndarray[Any, np.dtype[np.int64]]
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128, "bf16": 16, "token": 0}
"""Of an element, where the type's name does not end in or begin with them, as in f32 and f8e4m3fn."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


@dataclass(frozen=True, order=True)
class Collective:
    """kind: in KINDS.  bytes: of the whole array on one device, that is, what an all-gather or all-reduce gives, what a
    reduce-scatter takes, what an all-to-all or a permute sends and keeps.  count: how often a step runs it.  size:
    devices in a group.  nodes: over how many nodes a group lies, where most.  certain: whether every loop around it
    has a known trip count; one that has not is counted once."""

    kind: str
    bytes: int
    count: int
    size: int
    nodes: int
    certain: bool = True

    def traffic(self) -> tuple[float, float]:
        """Bytes that one device sends, each time, (to its own node, to other nodes), by the best known algorithms.

        A ring or a halving tree sends (n - 1) / n of the whole array, an all-reduce twice that; between nodes the
        devices of a node share the work, so that each sends 1 / k of it (hierarchical rings, as NCCL builds them)."""
        inside = max(self.size // self.nodes, 1)
        if self.kind == "collective-permute":
            return (0.0, float(self.bytes)) if self.nodes > 1 else (float(self.bytes), 0.0)
        if self.kind.endswith("all-to-all"):
            share = self.bytes / self.size
            return share * (inside - 1), share * (self.size - inside)
        twice = 2 if self.kind == "all-reduce" else 1
        near, far = (inside - 1) / inside, (self.nodes - 1) / self.nodes / inside
        return twice * self.bytes * near, twice * self.bytes * far


class _Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    rest: str


def collectives(text: str, node_of: Sequence[int]) -> list[Collective]:
    """Every collective of a program, in the program's order. node_of: the node of each partition."""
    entry, bodies = computations(text)
    nodes = np.asarray(node_of)
    found = []
    for name, (count, certain) in runs(entry, bodies).items():
        for made in bodies[name]:
            kind = made.op.removesuffix("-start")
            if kind in KINDS:
                groups = _groups(made.rest, len(nodes))
                spans = max(len(np.unique(nodes[group])) for group in groups)
                size = max(len(group) for group in groups)
                found.append(Collective(kind, _bytes(made, kind, size), count, size, spans, certain))
    return found


def computations(text: str) -> tuple[str, dict[str, list[_Instruction]]]:
    """(the entry's name, the instructions of every computation). Raises ValueError for a text that has no entry."""
    bodies: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = bodies[header[2]] = []
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif " = " in line:
            current.append(_instruction(line))
    if not entry:
        raise ValueError("this is no text of an XLA program: it has no ENTRY computation")
    return entry, bodies


def runs(entry: str, bodies: dict[str, list[_Instruction]]) -> dict[str, tuple[int, bool]]:
    """How often each computation runs in one run of the program, and whether that is certain."""
    calls: dict[str, list[tuple[str, int, bool]]] = defaultdict(list)
    for name, instructions in bodies.items():
        for made in instructions:
            trips = _TRIPS.search(made.rest) if made.op == "while" else None
            times, certain = int(trips[1]) if trips else 1, made.op != "while" or trips is not None
            for called in _called(made.rest):
                if called in bodies:
                    calls[name].append((called, times, certain))
    total: dict[str, tuple[int, bool]] = {}

    def visit(name: str, times: int, certain: bool) -> None:
        before = total.get(name, (0, True))
        total[name] = before[0] + times, before[1] and certain
        for called, more, sure in calls[name]:
            visit(called, times * more, certain and sure)

    visit(entry, 1, True)
    return total


def _called(rest: str) -> Iterator[str]:
    yield from _CALLED.findall(rest)
    for names in _BRANCHES.findall(rest):
        yield from (name.strip().lstrip("%") for name in names.split(","))


def _instruction(line: str) -> _Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    op, _, arguments = rest[end:].strip().partition("(")
    return _Instruction(name.lstrip("%"), rest[:end], op, arguments)


def _closing(text: str) -> int:
    """Where the parenthesis closes with which the text begins."""
    depth = 0
    for mark in re.finditer(r"[()]", text):
        depth += 1 if mark[0] == "(" else -1
        if depth == 0:
            return mark.start()
    return len(text) - 1


def _bytes(made: _Instruction, kind: str, size: int) -> int:
    result = made.shape
    if made.op.endswith("-start") and kind != "all-reduce":  # (what it takes, what it gives, and at times contexts)
        result = _parts(made.shape)[1]
    return shape_bytes(result) * (size if kind == "reduce-scatter" else 1)


def _parts(shape: str) -> list[str]:
    """The elements of a tuple's shape."""
    parts, depth, start = [], 0, 1
    for i, mark in enumerate(shape):
        depth += (mark in "([{") - (mark in ")]}")
        if (mark == "," and depth == 1) or (mark == ")" and depth == 0):
            parts.append(shape[start:i])
            start = i + 1
    return parts


def shape_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape, as in `(bf16[8,128]{1,0}, f32[])`."""
    return sum(math.ceil(_bits(kind) * math.prod(_numbers(dims)) / 8) for kind, dims in _ARRAY.findall(shape))


def _bits(kind: str) -> int:
    digits = re.match(r"[a-z]+(\d+)", kind)
    return BITS.get(kind, int(digits[1]) if digits else 0)


# --- groups ----------------------------------------------------------------------------------------------------------


def _groups(rest: str, devices: int) -> list[Group]:
    """The groups of partitions of a collective."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest)
    if pairs:
        return [np.array(_numbers(pair)) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])] or [np.arange(1)]
    written = re.search(r"replica_groups=", rest)
    text = rest[written.end() :] if written else "{}"
    if text.startswith("mesh"):
        return _mesh_groups(text, devices)
    if text.startswith("["):
        iota = _IOTA.match(text)
        assert iota is not None
        rows, columns = _numbers(iota[1])
        order = _iota(iota[2] or str(rows * columns), iota[3])
        return list(order.reshape(rows, columns))
    rows_ = re.findall(r"\{([\d,]+)\}", text[: text.find("}}") + 2]) if text.startswith("{{") else []
    return [np.array(_numbers(row)) for row in rows_] or [np.arange(devices)]


def _mesh_groups(text: str, devices: int) -> list[Group]:
    """Of `mesh['a'=4,'b'=2], device_ids=([4,2]T(1,0)) {'b'}`: a group for each place along the other axes. An axis
    `'a':(2)4` is a part of 'a': what remains, 4 long, after its first 2."""
    end = text.index("]")
    axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", text[:end])]
    ids = re.match(r"\],? ?device_ids=\(([^()]*(?:\([\d,]+\))?)\)", text[end:])
    order = np.arange(devices)
    if ids:
        iota = _IOTA.match(ids[1])
        order = _iota(iota[1], iota[3]) if iota else np.array(_numbers(ids[1]))
    named = text[text.index("{", end) : text.index("}", end)]
    chosen = {axis: (int(before or 1), int(size) if size else None) for axis, before, size in _AXIS.findall(named)}
    shape, picked = [], []
    for name, size in axes:
        before, length = chosen.get(name, (1, 1))
        length = size // before if length is None else length
        shape += [before, length, size // before // length]
        picked += [False, name in chosen, False]
    keep, move = ([i for i, p in enumerate(picked) if p is which] for which in (False, True))
    grid = order.reshape(shape).transpose(*keep, *move)
    return list(grid.reshape(-1, math.prod(shape[i] for i in move)))


def _iota(dims: str, permutation: str | None) -> Group:
    order = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return (order.transpose(_numbers(permutation)) if permutation else order).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n.strip()]
