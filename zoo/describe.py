"""Specs in words and numbers: a line of a table, a model drawn as text, the difference of two."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..layers.accounting import Leaf, is_predictor, leaves
from ..layers.attention import Attention
from ..layers.block import PARTS
from ..layers.compressed import CompressedAttention
from ..layers.decoder import Layer, Spec
from ..layers.latent import LatentAttention
from ..layers.lent import NormedAttention
from ..layers.shortcut import Shortcut
from .amounts import amount, size
from .steps import kinds, notes, order, words_of_block
from .words import entry, spoken, words_of, words_of_norm, words_of_router

LENGTH = 4096
"""Tokens for which FLOPs and cache are told, where the model takes so many."""

NUMBERS = {
    "parameters": "parameters",
    "active": "active parameters",
    "flops_per_token": "FLOPs a token",
    "cache_bytes_per_token": "cache bytes a token more",
    "cache_bytes": "cache bytes",
}
"""What two models are compared by, and how it is called."""


def summary(name: str, spec: Spec, length: int = LENGTH) -> dict[str, Any]:
    """The line of a model in a table: plain data. FLOPs and bfloat16 cache are those of `length` tokens, if it takes so
    many; full_cache_bytes is what every head's keys and values at every token would take.
    """
    length = min(length, spec.max_length)
    mlps = [layer.mlp.experts if isinstance(layer.mlp, Shortcut) else layer.mlp for layer in spec.layers]
    grown = spec.cache_bytes(1, length) - spec.cache_bytes(1, length - 1)
    return {
        "name": name,
        "family": spec.hf.family if spec.hf else "",
        "parameters": spec.param_count(),
        "active": spec.active_param_count(),
        "layers": spec.depth,
        "width": spec.width,
        "attention": " + ".join(_counted(words_of(layer.attention)[:1] for layer in spec.layers)),
        "mlp": " + ".join(_counted(words_of(layer.mlp)[:1] for layer in spec.layers)),
        "router": " + ".join(dict.fromkeys(words_of_router(mlp.router) for mlp in mlps if hasattr(mlp, "router"))),
        "norm": " + ".join(_counted((words_of_block(layer.block),) for layer in spec.layers)),
        "vocab": spec.vocab,
        "context": spec.max_length,
        "cache_bytes_per_token": grown,
        "cache_bytes": spec.cache_bytes(1, length),
        "full_cache_bytes": 2 * length * sum(_full(part) for layer in spec.layers for part in layer[1:]),
        "cache_length": length,
        "flops_per_token": spec.flops_per_token(length),
    }


def details(name: str, spec: Spec, length: int = LENGTH) -> dict[str, Any]:
    """`summary`, with the runs of layers, the parameters by part, and the spec's paths."""
    parts: Counter[str] = Counter()
    for leaf in leaves(spec):
        if not is_predictor(leaf):
            parts[_part(spec, leaf)] += math.prod(leaf.shape)
    runs = [
        {
            "layers": f"{run.start}-{run.start + len(run.period) * run.repeats - 1}",
            "repeats": run.repeats,
            "period": run.period,
        }
        for run in spec.runs
    ]
    plain_runs = [run | {"period": [_words(layer) for layer in run["period"]]} for run in runs]  # type: ignore[attr-defined]
    paths = {path: _json(value) for path, value in spec.paths().items()}
    return summary(name, spec, length) | {"parts": dict(parts.most_common()), "runs": plain_runs, "paths": paths}


def _part(spec: Spec, leaf: Leaf) -> str:
    """Under which name a parameter is counted."""
    if "experts" in leaf.axes:
        return "experts"
    if leaf.owner is spec:
        return leaf.path[0].partition("_")[0]
    inside = [place for place in leaf.path if place in PARTS]
    if inside:
        return inside[-1]
    return "norms" if len(leaf.spaces()) == 1 else spoken(type(leaf.owner)).lower()


def drawn(name: str, spec: Spec, length: int = LENGTH) -> str:
    """The model as text: what each kind of layer does to the residual x, in which order they are, then where
    parameters, FLOPs and cache go.
    """
    told, found = details(name, spec, length), kinds(spec)
    scaled = f" * {spec.embedding_scale:.4g}" if spec.embedding_scale != 1 else ""
    steps = [step for kind in found for step in kind.steps]
    wide = max(36, 6 + max(len(step.formula) for step in steps))
    lines = [
        f"{name}: {amount(told['parameters'])} parameters, {amount(told['active'])} active",
        "",
        f"  x = embedding[token]{scaled}".ljust(wide) + f"{spec.vocab:,} x {spec.width:,}",
    ]
    for kind in found:
        lines += ["", f"  {kind.letter}: {kind.where(spec.depth)}" if len(found) > 1 else f"  {kind.where(spec.depth)}"]
        lines += [f"    {s.formula}".ljust(wide) + (", ".join(s.words) or s.before) for s in kind.steps]
    times = f" * {spec.logit_scale:.4g}" if spec.logit_scale != 1 else ""
    head = f"{'embedding' if spec.tied else 'head'} . norm(x){times}"
    softcap = f", capped: {spec.logit_softcap:g} tanh(. / {spec.logit_softcap:g})" if spec.logit_softcap else ""
    lines += ["", f"  logits = {head}".ljust(wide) + words_of_norm(spec.final_norm) + softcap, ""]
    lines += [f"  {note}" for note in notes(spec)] + [""] * bool(notes(spec))
    lines += [f"  order: {order(spec, found)}", ""] if len(found) > 1 else []
    lines += [f"  {part:<18}{amount(n):>10}  {n / told['parameters']:6.1%}" for part, n in told["parts"].items()]
    bodies, runs = sum(len(run.period) for run in spec.runs), len(spec.runs)
    full = told["full_cache_bytes"]
    saved = f"; every head's keys and values would take {size(full)}" if full > told["cache_bytes"] else ""
    predictors = spec.param_count(mtp=True) - told["parameters"]
    return "\n".join(
        [
            *lines,
            *([f"  beside them {amount(predictors)} of multi-token prediction"] if predictors else []),
            "",
            f"  {amount(told['flops_per_token'])} FLOPs a token forward at {told['cache_length']:,} tokens",
            f"  {size(told['cache_bytes'])} of bfloat16 cache for {told['cache_length']:,} tokens, "
            f"{told['cache_bytes_per_token']:,} B for one more{saved}",
            f"  {_some(spec.depth, 'layer')} in {_some(runs, 'run')}: "
            f"{_some(bodies, 'layer body', 'layer bodies')} to compile",
        ]
    )


def _some(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"


def aspects(spec: Spec) -> dict[str, str]:
    """What a model is, in words: what one would compare first."""

    def told(words: Callable[[Layer], str]) -> str:
        return "; ".join(found for found in dict.fromkeys(map(words, spec.layers)) if found)

    ends = ["tied" if spec.tied else "untied"]
    ends += [f"embedding times {spec.embedding_scale:.4g}"] if spec.embedding_scale != 1 else []
    ends += [f"logits times {spec.logit_scale:.4g}"] if spec.logit_scale != 1 else []
    ends += [f"logits capped at {spec.logit_softcap:g}"] if spec.logit_softcap else []
    ends += [f"{_some(spec.mtp.depth, 'module')} of multi-token prediction"] if spec.mtp else []
    return {
        "attention": told(lambda layer: ", ".join(words_of(layer.attention))),
        "mlp": told(lambda layer: ", ".join(words_of(layer.mlp))),
        "norms": f"{told(lambda layer: words_of_block(layer.block))}, {words_of_norm(spec.final_norm)}",
        "ends": ", ".join(ends),
        "order": summary("", spec)["attention"] + "; " + summary("", spec)["mlp"],
    }


def difference(a: Spec, b: Spec) -> dict[str, Any]:
    """What differs, each as [a's, b's]: aspects in words, spec fields by path, and the numbers that follow."""
    ours, theirs = ({p: _json(v) for p, v in spec.paths().items()} for spec in (a, b))
    changed = {p: [ours.get(p), theirs.get(p)] for p in {**ours, **theirs} if ours.get(p) != theirs.get(p)}
    one, two = summary("", a), summary("", b)
    said, other = aspects(a), aspects(b)
    words = {aspect: [said[aspect], other[aspect]] for aspect in said if said[aspect] != other[aspect]}
    return {"words": words, "fields": changed, "numbers": {key: [one[key], two[key]] for key in NUMBERS}}


def _words(layer: Layer) -> dict[str, str]:
    return {
        "attention": ", ".join(words_of(layer.attention)),
        "mlp": ", ".join(words_of(layer.mlp)),
        "norms": words_of_block(layer.block),
    }


FULL: Mapping[type, Callable[[Any], int]] = {
    Attention: lambda of: of.kv_heads * (of.head_dim + (of.head_dim if of.values is None else of.values.dim)),
    LatentAttention: lambda of: of.heads * (of.nope_dim + of.rope.dim + of.value_dim),
    NormedAttention: lambda of: of.kv_heads * 2 * of.head_dim,
    CompressedAttention: lambda of: of.head_dim,
    Shortcut: lambda of: _full(of.attention),
}


def _full(spec: Any) -> int:
    """Numbers that the keys and values of all its key-value heads are, for one token; 0 if it has none."""
    count = entry(FULL, spec)
    return count(spec) if count else 0


def _counted(words: Iterable[tuple[str, ...]]) -> list[str]:
    """Each with its count; of no words, as where a layer of one mixer has nothing in the place of the other, none."""
    counts = Counter(word[0] for word in words if word)
    return [word if len(counts) == 1 else f"{count} x {word}" for word, count in counts.items()]


def _json(value: Any) -> Any:
    return "..." if value is Ellipsis else list(value) if isinstance(value, tuple) else value
