"""A model drawn as SVG from its spec: each kind of layer once, as what the residual stream passes, and the order of the
layers as a strip of cells. At most ROW kinds beside one another, so that a page shows it at its own size."""

from collections.abc import Sequence
from html import escape
from textwrap import wrap

from ..layers.decoder import Spec
from .amounts import amount
from .steps import Kind, Step, kinds
from .words import words_of_norm

ROW = 3
COLUMN, GAP, LEFT = 250, 16, 20
STREAM, BOX_LEFT, BOX, LANE = 22, 44, 184, 239  # in a column: the stream, the boxes, the way around them
CELL, HEAD = 16, 30  # of the strip: its height; of a column: what its title takes
COLORS = {"attention": "#dbe7fb", "mlp": "#fbe6d2", "own": "#efe3f6", "norm": "#e4f1e1", "ends": "#ececec"}
KINDS = ("#8fb4ee", "#f2b178", "#8fce9b", "#cfa6e6", "#ec9a9a", "#7fcdd4", "#dccb68", "#b4b4b4")
FONT = "font-family='Helvetica, Arial, sans-serif'"
WIDE = {"bold": 6.2, "normal": 5.3}
"""About how wide a letter is, by weight, of those that fill a box."""


def diagram(name: str, spec: Spec) -> str:
    """The SVG's text."""
    found = kinds(spec)
    rows = [found[i : i + ROW] for i in range(0, len(found), ROW)][::-1]  # depth grows upwards
    heights = [max(_column(kind, spec.depth, 0, 0)[1] for kind in row) for row in rows]
    width = LEFT * 2 + max(map(len, rows)) * (COLUMN + GAP) - GAP
    inner = width - 2 * LEFT
    total, active = amount(spec.param_count()), amount(spec.active_param_count())
    parts = [
        _text(LEFT, 30, name, size=19, weight="bold", anchor="start"),
        _text(LEFT, 49, f"{total} parameters, {active} active", size=12, fill="#555", anchor="start"),
        _text(LEFT, 65, f"{spec.depth} layers of width {spec.width:,}", size=12, fill="#555", anchor="start"),
    ]
    y = 78
    if len(found) > 1:
        parts += _strip(found, spec.depth, LEFT, y, inner)
        y += CELL + 30
    scale = f" · {spec.embedding_scale:.4g}" if spec.embedding_scale != 1 else ""
    softcap = f", capped at {spec.logit_softcap:g}" if spec.logit_softcap else ""
    matrix = "the embedding" if spec.tied else "the head"
    head, high = _bar(y, inner, f"{words_of_norm(spec.final_norm)}, then {matrix}: {spec.vocab:,} logits{softcap}")
    parts += head
    y += high + 14
    for row, height in zip(rows, heights, strict=True):
        for i, kind in enumerate(row):
            parts += _column(kind, spec.depth, LEFT + i * (COLUMN + GAP), y + height, height)[0]
        y += height + (22 if row is not rows[-1] else 14)
    foot, high = _bar(y, inner, f"embedding of {spec.vocab:,} tokens{scale}")
    height = y + high + LEFT
    opened = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>"
    )
    card = f"<rect width='{width}' height='{height}' rx='10' fill='#fff'/>"
    return "\n".join([opened, card, *parts, *foot, "</svg>"]) + "\n"


def _color(kind: Kind) -> str:
    return KINDS[(ord(kind.letter) - ord("A")) % len(KINDS)]


def _strip(found: Sequence[Kind], depth: int, left: float, top: float, width: float) -> list[str]:
    """A cell for each layer, the first one on the left."""
    wide = min(24, width / depth)
    at = {layer: kind for kind in found for layer in kind.depths}
    parts = []
    for layer in range(depth):
        x = left + wide * layer
        fill = _color(at[layer])
        parts.append(f"<rect x='{x:.2f}' y='{top}' width='{wide:.2f}' height='{CELL}' fill='{fill}' stroke='#fff'/>")
        if wide >= 9:
            parts.append(_text(x + wide / 2, top + 12, at[layer].letter, size=10))
    ends = ((left, "layer 0", "start"), (left + wide * depth, f"layer {depth - 1}", "end"))
    return parts + [_text(x, top + CELL + 13, words, size=10, fill="#555", anchor=side) for x, words, side in ends]


def _column(kind: Kind, depth: int, x: float, bottom: float, least: int = 0) -> tuple[list[str], int]:
    """A kind of layer above `bottom`, and how high it is, `least` or more: the stream on the left, boxes beside it, and
    a sign where what they give joins it.
    """
    stream, y, parts = x + STREAM, bottom - 12, list[str]()
    kept = 0.0  # the middle of the norm whose result a later step reads again
    below = ""  # what a box stands on: a norm of its own, or nothing
    for step in kind.steps:
        for words, color in _boxes(step):
            reads, y = step.reads and color != "norm", y - 14
            parts += _way_in(x, y, below, kept if reads and below != "kept" else 0.0)
            high = 10 + 15 * len(words)
            parts += _box(x + BOX_LEFT, y - high, high, words, COLORS[color])
            y -= high
            below = "box"
        if step.keeps:
            kept, below = y + 12, "kept"
            parts.append(_text(x + BOX_LEFT + BOX + 6, kept - 3, "u", size=11, fill="#555", anchor="middle"))
            continue
        y -= 22 if step.part else 28
        parts += _way_out(x, y, step, boxed=below == "box")
        below = ""
        if step.outer:
            y -= 36
            parts += _box(x + 8, y, 24, (step.outer,), COLORS["norm"], 100)
    height = max(round(bottom - y) + 14 + HEAD, least)
    top = bottom - height
    wide = 3 if any(step.joins == "M" for step in kind.steps) else 1
    line = f"M{stream} {bottom + 8} V{top - 8} m-4 7 l4 -7 l4 7"
    chip = _box(x + BOX_LEFT, top + 9, 17, (kind.letter,), _color(kind), 17)
    card = f"<rect x='{x}' y='{top}' width='{COLUMN}' height='{height}' rx='8' fill='#fafafa' stroke='#d5d5d5'/>"
    title = _text(x + COLUMN - 10, top + 21, kind.where(depth), size=11, fill="#555", anchor="end")
    path = f"<path d='{line}' stroke='#333' stroke-width='{wide}' fill='none'/>"
    return [card, path, *(chip if len(kind.depths) < depth else ()), title, *parts], height


def _boxes(step: Step) -> list[tuple[tuple[str, ...], str]]:
    """The boxes of a step from the bottom: their lines and colour."""
    words = ((_lines(step.words), step.part),) if step.part else ()
    return [
        *((((step.before,), "norm"),) if step.before else ()),
        *words,
        *((((step.after,), "norm"),) if step.after else ()),
    ]


def _lines(words: Sequence[str]) -> tuple[str, ...]:
    """Words in lines that fit a box, the first of which is bold."""
    room = {weight: int((BOX - 8) / wide) for weight, wide in WIDE.items()}
    first, *more = words or ("",)
    return (
        *(f"**{line}" for line in wrap(first, room["bold"]) or [""]),
        *(line for words in more for line in wrap(words, room["normal"])),
    )


def _box(x: float, y: float, high: float, lines: Sequence[str], fill: str, wide: float = BOX) -> list[str]:
    parts = [f"<rect x='{x}' y='{y}' width='{wide}' height='{high}' rx='5' fill='{fill}' stroke='#777'/>"]
    start = y + high / 2 - 15 * (len(lines) - 1) / 2 + 4
    for i, line in enumerate(lines):
        bold = line.startswith("**")
        weight = "bold" if bold else "normal"
        words = line.removeprefix("**")
        parts.append(_text(x + wide / 2, start + 15 * i, words, size=12 if bold else 11, weight=weight))
    return parts


def _way_in(x: float, y: float, below: str, kept: float) -> list[str]:
    """The line to a box whose lower edge is at y: from what it stands on, from the lane, or from the stream."""
    middle = x + BOX_LEFT + BOX / 2
    if kept:
        line = f"M{x + BOX_LEFT + BOX} {kept} H{x + LANE} V{y + 7} H{middle} V{y}"
    elif below:
        line = f"M{middle} {y + 14} V{y}"
    else:
        line = f"M{x + STREAM} {y + 8} H{middle} V{y}"
    return [f"<path d='{line}' stroke='#333' fill='none'/>"]


def _way_out(x: float, y: float, step: Step, boxed: bool) -> list[str]:
    """From a box whose upper edge is at y + 22 to the stream, and the sign there."""
    stream, middle, sign = x + STREAM, x + BOX_LEFT + BOX / 2, step.joins.replace("x", "×")
    parts = [f"<path d='M{middle} {y + 22} V{y + 12} H{stream}' stroke='#333' fill='none'/>"] if boxed else []
    if sign:
        parts.append(f"<circle cx='{stream}' cy='{y + 12}' r='9' fill='#fff' stroke='#333'/>")
        parts.append(_text(stream, y + 16, sign, size=13 if len(sign) == 1 else 9))
    if not boxed:
        parts.append(_text(x + BOX_LEFT, y + 16, step.words[0] if step.words else "", size=11, anchor="start"))
    return parts


def _bar(y: float, width: float, words: str) -> tuple[list[str], int]:
    lines = wrap(words, int((width - 12) / WIDE["normal"]))
    high = 14 + 15 * len(lines)
    return _box(LEFT, y, high, lines, COLORS["ends"], width), high


def _text(
    x: float, y: float, words: str, *, size: int, weight: str = "normal", fill: str = "#111", anchor: str = "middle"
) -> str:
    return (
        f"<text x='{x:g}' y='{y:g}' {FONT} font-size='{size}' font-weight='{weight}' fill='{fill}' "
        f"text-anchor='{anchor}'>{escape(words)}</text>"
    )
