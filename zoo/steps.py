"""A block as steps: what it computes of the residual x and how that joins it, in formulas and in words.

What `archzoo show` prints and the pictures draw (diagram.py). A table by type says what the steps of each block are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..layers.block import PARTS, Parallel, Residual
from ..layers.decoder import Layer, Spec
from ..layers.hyper import HyperConnections
from ..layers.per_layer import ScaledBlock
from ..layers.shortcut import Shortcut, ShortcutBlock
from ..layers.single import Absent, Single
from .words import entry, spoken, words_of, words_of_norm


class Step(NamedTuple):
    """A line of a block: a formula, and the words of the layer in it, none where it has none.

    part: attention, mlp, or what else it is called.  before, after, outer: norms of what the layer reads, of what it
    gives, of the sum, in words.  joins: how what it gives joins the residual; "" where the block says so elsewhere.
    keeps: what is normalised is read again by a later step, one that `reads`."""

    part: str
    formula: str
    words: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    outer: str = ""
    joins: str = "+"
    keeps: bool = False
    reads: bool = False


class Kind(NamedTuple):
    """Layers that do the same, and at which depths they are."""

    letter: str
    steps: tuple[Step, ...]
    depths: tuple[int, ...]

    def where(self, depth: int) -> str:
        """Which of `depth` layers they are, in words."""
        first, last, count = self.depths[0], self.depths[-1], len(self.depths)
        if count == 1:
            return f"layer {first}"
        gap = self.depths[1] - first
        if self.depths != tuple(range(first, last + 1, gap)):
            return f"{count} of {depth} layers"
        if gap == 1:
            return f"layers {first}-{last}"
        return f"{count} layers, every {ORDINALS.get(gap, f'{gap}th')} from {first}"


ORDINALS = {2: "2nd", 3: "3rd"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def kinds(spec: Spec) -> tuple[Kind, ...]:
    """The layers that differ in what is told of them, in the order of depth."""
    found: dict[tuple[Step, ...], list[int]] = {}
    for depth, layer in enumerate(spec.layers):
        found.setdefault(steps(layer), []).append(depth)
    return tuple(Kind(LETTERS[i % len(LETTERS)], of, tuple(at)) for i, (of, at) in enumerate(found.items()))


def order(spec: Spec, of: Sequence[Kind]) -> str:
    """The letters of the layers, run by run: 3 x AAAB, 2 x A."""
    letters = {depth: kind.letter for kind in of for depth in kind.depths}
    runs = ((run.repeats, "".join(letters[run.start + p] for p in range(len(run.period)))) for run in spec.runs)
    return ", ".join(f"{repeats} x {period}" if repeats > 1 else period for repeats, period in runs)


def steps(layer: Layer) -> tuple[Step, ...]:
    """What the layer's block computes, one after another."""
    return (entry(STEPS, layer.block) or _unknown)(layer)


def words_of_block(block: Any) -> str:
    """Where its norms are and what else it does."""
    tell = entry(BLOCKS, block)
    return f"{_placement(block)} {spoken(type(block)).lower() if tell is None else tell(block)}".strip()


# --- one function a block --------------------------------------------------------------------------------------------

PLACEMENTS = {"before": "pre", "after": "inner post", "outer": "post", "before after": "sandwich"}


def _placement(block: Any) -> str:
    present = " ".join(place for place in ("before", "after", "outer") if getattr(block, place, None))
    return PLACEMENTS.get(present, present)


def _norm(norm: Any) -> str:
    return words_of_norm(norm) if norm else ""


def _sum(part: str, block: Any, scale: float = 1.0) -> str:
    """The formula of a step between the norms that are there."""
    inner = f"{part}(norm(x))" if block.before else f"{part}(x)"
    inner = f"norm({inner})" if block.after else inner
    inner = f"{scale:.4g} {inner}" if scale != 1 else inner
    return f"x = norm(x + {inner})" if block.outer else f"x = x + {inner}"


def _residual(layer: Layer) -> tuple[Step, ...]:
    block = layer.block
    before, after, outer = (_norm(norm) for norm in (block.before, block.after, block.outer))
    return tuple(
        Step(part, _sum(part, block, block.scale), words_of(getattr(layer, part)), before, after, outer)
        for part in PARTS
        if not isinstance(getattr(layer, part), Absent)
    )


def _parallel(layer: Layer) -> tuple[Step, ...]:
    before = _norm(layer.block.before)
    read = "u" if before else "x"
    return (
        *((Step("", "u = norm(x)", before=before, joins="", keeps=True),) if before else ()),
        Step("attention", f"y = attention({read})", words_of(layer.attention), joins="+", reads=bool(before)),
        Step("mlp", f"x = x + y + mlp({read})", words_of(layer.mlp), reads=bool(before)),
    )


def _single(layer: Layer) -> tuple[Step, ...]:
    before = _norm(layer.block.before)
    present = [part for part in PARTS if not isinstance(getattr(layer, part), Absent)]
    return tuple(
        Step(part, f"x = x + {part}(norm(x))", words_of(getattr(layer, part)), before=before) for part in present
    )


def _shortcut(layer: Layer) -> tuple[Step, ...]:
    first = Step("attention", "x = x + attention(norm(x))", words_of(layer.attention), before=_norm(layer.block.before))
    if not isinstance(layer.mlp, Shortcut):
        return first, Step("mlp", "x = x + mlp(x)", words_of(layer.mlp))
    of, norm = layer.mlp, _norm(layer.mlp.norm)
    return (
        first,
        Step("", "u = norm(x)", before=norm, joins="", keeps=True),
        Step("mlp", "x = x + mlp(u)", words_of(of.first), reads=True),
        Step("attention", "x = x + attention(norm(x))", words_of(of.attention), before=norm),
        Step("mlp", "x = x + mlp(norm(x))", words_of(of.second), before=norm),
        Step("mlp", "x = x + experts(u)", words_of(of.experts), reads=True),
    )


def _scaled(layer: Layer) -> tuple[Step, ...]:
    block, norm = layer.block, _norm(layer.block.norm)
    mlp = norm if block.mlp_normed else ""
    own = (f"{block.dim} numbers of this layer's own", f"gated by {block.activation}")
    return (
        Step("attention", "x = x + norm(attention(norm(x)))", words_of(layer.attention), norm, norm),
        Step("mlp", f"x = x + {'norm(mlp(norm(x)))' if mlp else 'mlp(x)'}", words_of(layer.mlp), mlp, mlp),
        *((Step("own", "x = x + norm(own(x, token))", ("per-layer input", *own), after=norm),) if block.dim else ()),
        Step("", "x = s x", ("s is kept, not trained",), joins="x s"),
    )


def _hyper(layer: Layer) -> tuple[Step, ...]:
    norm = _norm(layer.block.norm)
    return tuple(
        Step(part, f"x = M x + p {part}(norm(q x))", words_of(getattr(layer, part)), before=norm, joins="M")
        for part in PARTS
    )


def _unknown(layer: Layer) -> tuple[Step, ...]:
    name = type(layer.block).__name__
    return tuple(Step(p, f"x = {name}({p}, x)", words_of(getattr(layer, p)), joins="") for p in PARTS)


def _hyper_words(block: HyperConnections) -> str:
    return f"pre, {block.streams} hyper-connected streams"


STEPS: Mapping[type, Callable[[Layer], tuple[Step, ...]]] = {
    Residual: _residual,
    Parallel: _parallel,
    Single: _single,
    ShortcutBlock: _shortcut,
    ScaledBlock: _scaled,
    HyperConnections: _hyper,
}
BLOCKS: Mapping[type, Callable[[Any], str]] = {
    Residual: lambda _: "",
    Parallel: lambda _: "parallel",
    Single: lambda _: "single",
    ShortcutBlock: lambda _: "shortcut",
    ScaledBlock: lambda block: "sandwich" + ", per-layer input" * bool(block.dim) + ", scaled",
    HyperConnections: _hyper_words,
}
NOTES: Mapping[type, Callable[[Any], str]] = {
    HyperConnections: lambda block: (
        f"x is {block.streams} streams; q, p and M, whose rows and columns sum to one, are read out of them"
    ),
    ShortcutBlock: lambda _: "the experts read what the first MLP reads, and join at the end",
}


def notes(spec: Spec) -> list[str]:
    """What the formulas leave open."""
    blocks = dict.fromkeys(layer.block for layer in spec.layers)
    return [tell(block) for block in blocks if (tell := entry(NOTES, block))]
