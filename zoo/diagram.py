"""A model drawn as SVG from its spec: a column for each kind of layer, and in it what the residual stream passes."""

from html import escape
from itertools import groupby
from typing import Any, NamedTuple

from ..layers.block import Residual
from ..layers.decoder import Layer, Spec
from .describe import amount, words_of_attention, words_of_block, words_of_mlp, words_of_norm

COLUMN, GAP, LEFT = 268, 26, 24
BOX, LINE = 200, 15
COLORS = {"attention": "#dbe7fb", "mlp": "#fbe6d2", "norm": "#e4f1e1", "ends": "#ececec"}
FONT = "font-family='Helvetica, Arial, sans-serif'"


class Box(NamedTuple):
    """A box of a column: its kind, its lines, and whether the residual is added after it."""

    kind: str
    lines: tuple[str, ...]
    joins: bool = False


class Column(NamedTuple):
    title: str
    boxes: tuple[Box, ...]


def diagram(name: str, spec: Spec) -> str:
    """The SVG's text."""
    columns = [column for run in spec.runs for column in _columns(run)]
    top = 92
    heights = [sum(_height(box) + 14 + 22 * box.joins for box in column.boxes) for column in columns]
    body = max(heights)
    width = LEFT * 2 + len(columns) * COLUMN + (len(columns) - 1) * GAP
    height = top + body + 64 + 28 + 22
    scale = f" · {spec.embedding_scale:.4g}" if spec.embedding_scale != 1 else ""
    softcap = f", capped at {spec.logit_softcap:g}" if spec.logit_softcap else ""
    matrix = "the embedding" if spec.tied else "the head"
    head = f"{words_of_norm(spec.final_norm)}, then {matrix}: {spec.vocab:,} logits{softcap}"
    total, active = amount(spec.param_count()), amount(spec.active_param_count())
    counts = f"{total} parameters, {active} active; width {spec.width:,}"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>",
        f"<rect width='{width}' height='{height}' rx='10' fill='#fff'/>",
        _text(LEFT, 30, name, size=19, weight="bold", anchor="start"),
        _text(LEFT, 50, counts, size=12, fill="#555", anchor="start"),
        _bar(LEFT, top - 26, width - 2 * LEFT, head),
        _bar(LEFT, top + body + 64, width - 2 * LEFT, f"embedding of {spec.vocab:,} tokens{scale}"),
    ]
    for i, column in enumerate(columns):
        parts += _column(column, LEFT + i * (COLUMN + GAP), top + 20, body + 34)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _columns(run: Any) -> list[Column]:
    """One column for layers in a row that are the same, in the order of depth."""
    groups = [(layer, len(list(same))) for layer, same in groupby(run.period)]
    last = run.start + len(run.period) * run.repeats - 1
    where = f"layers {run.start}-{last}" if last > run.start else f"layer {last}"
    several = len(groups) > 1
    return [
        Column(f"{where}: {count} of every {len(run.period)}" if several else where, tuple(_boxes(layer)))
        for layer, count in groups
    ]


def _boxes(layer: Layer) -> list[Box]:
    """Bottom to top."""
    boxes = []
    for part, words in (("attention", words_of_attention(layer.attention)), ("mlp", words_of_mlp(layer.mlp))):
        block = layer.block
        if isinstance(block, Residual):
            norms = {place: getattr(block, place) for place in ("before", "after", "outer")}
            if norms["before"]:
                boxes.append(Box("norm", (words_of_norm(norms["before"]),)))
            boxes.append(Box(part, words, joins=not norms["after"]))
            if norms["after"]:
                boxes.append(Box("norm", (words_of_norm(norms["after"]),), joins=True))
            if norms["outer"]:
                boxes.append(Box("norm", (words_of_norm(norms["outer"]),)))
        else:
            boxes.append(Box(part, words))
    if not isinstance(layer.block, Residual):
        boxes.append(Box("norm", (words_of_block(layer.block),)))
    return boxes


def _height(box: Box) -> int:
    return 14 + LINE * len(box.lines)


def _column(column: Column, x: int, top: int, height: int) -> list[str]:
    """From the bottom: the stream on the left, boxes beside it, a plus where their result joins it."""
    stream, left = x + 22, x + 48
    parts = [
        f"<rect x='{x}' y='{top}' width='{COLUMN}' height='{height}' rx='8' fill='#fafafa' stroke='#d5d5d5'/>",
        _text(x + COLUMN - 10, top + 16, column.title, size=11, fill="#555", anchor="end"),
        f"<path d='M{stream} {top + height + 10} V{top - 18} m-4 7 l4 -7 l4 7' stroke='#333' fill='none'/>",
    ]
    y, enters = top + height - 12, True
    for box in column.boxes:
        high = _height(box)
        y -= high
        middle = left + BOX / 2
        if enters:
            parts.append(f"<path d='M{stream} {y + high + 8} H{middle} V{y + high}' stroke='#333' fill='none'/>")
        else:
            parts.append(f"<path d='M{middle} {y + high + 14} V{y + high}' stroke='#333' fill='none'/>")
        fill = COLORS[box.kind]
        parts.append(f"<rect x='{left}' y='{y}' width='{BOX}' height='{high}' rx='5' fill='{fill}' stroke='#777'/>")
        for i, line in enumerate(box.lines):
            weight = "bold" if i == 0 and box.kind != "norm" else "normal"
            parts.append(_text(middle, y + 18 + LINE * i, line, size=12 if i == 0 else 11, weight=weight))
        if box.joins:
            y -= 22
            parts.append(f"<path d='M{middle} {y + 22} V{y + 12} H{stream + 8}' stroke='#333' fill='none'/>")
            parts.append(f"<circle cx='{stream}' cy='{y + 12}' r='8' fill='#fff' stroke='#333'/>")
            parts.append(_text(stream, y + 16, "+", size=13))
        enters = box.joins
        y -= 14
    return parts


def _bar(x: int, y: int, width: int, words: str) -> str:
    return f"<rect x='{x}' y='{y}' width='{width}' height='28' rx='5' fill='{COLORS['ends']}' stroke='#777'/>" + _text(
        x + width / 2, y + 18, words, size=12
    )


def _text(
    x: float, y: float, words: str, *, size: int, weight: str = "normal", fill: str = "#111", anchor: str = "middle"
) -> str:
    return (
        f"<text x='{x:g}' y='{y:g}' {FONT} font-size='{size}' font-weight='{weight}' fill='{fill}' "
        f"text-anchor='{anchor}'>{escape(words)}</text>"
    )
