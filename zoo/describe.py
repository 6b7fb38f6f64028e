"""Specs in words and numbers: a line of a table, a model drawn as text, the difference of two."""

import math
from collections import Counter
from itertools import groupby
from typing import Any

from ..layers.accounting import leaves
from ..layers.attention import Attention
from ..layers.block import Residual
from ..layers.decoder import Layer, Spec
from ..layers.latent import LatentAttention
from ..layers.moe import MoE

LENGTH = 4096
"""Tokens for which FLOPs and cache are told, where the model takes so many."""


def summary(name: str, spec: Spec, length: int = LENGTH) -> dict[str, Any]:
    """The line of a model in a table: plain data. FLOPs and bfloat16 cache are those of `length` tokens, if it takes so
    many; full_cache_bytes is what every head's keys and values at every token would take.
    """
    length = min(length, spec.max_length)
    grown = spec.cache_bytes(1, length) - spec.cache_bytes(1, length - 1)
    return {
        "name": name,
        "family": spec.hf.family if spec.hf else "",
        "parameters": spec.param_count(),
        "active": spec.active_param_count(),
        "layers": spec.depth,
        "width": spec.width,
        "attention": " + ".join(_counted(_attention(layer.attention) for layer in spec.layers)),
        "mlp": " + ".join(_counted(_mlp(layer.mlp) for layer in spec.layers)),
        "norm": " + ".join(_counted(_placement(layer.block) for layer in spec.layers)),
        "vocab": spec.vocab,
        "context": spec.max_length,
        "cache_bytes_per_token": grown,
        "cache_bytes": spec.cache_bytes(1, length),
        "full_cache_bytes": 2 * length * sum(_full(layer.attention) for layer in spec.layers),
        "cache_length": length,
        "flops_per_token": spec.flops_per_token(length),
    }


def details(name: str, spec: Spec, length: int = LENGTH) -> dict[str, Any]:
    """`summary`, with the runs of layers, the parameters by part, and the spec's paths."""
    parts: Counter[str] = Counter()
    for leaf in leaves(spec):
        place = leaf.path[2] if leaf.path[0].startswith("run_") else leaf.path[0].partition("_")[0]
        place = (
            "norms"
            if len(leaf.spaces()) == 1 and ("before" in place or "after" in place or "outer" in place)
            else place
        )
        parts["norms" if place == "final" else "experts" if "experts" in leaf.axes else place] += math.prod(leaf.shape)
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


def drawn(name: str, spec: Spec, length: int = LENGTH) -> str:
    """The model as text: what each run of layers does to the residual x, then where parameters, FLOPs and cache go."""
    told = details(name, spec, length)
    scaled = f" * {spec.embedding_scale:.4g}" if spec.embedding_scale != 1 else ""
    lines = [
        f"{name}: {amount(told['parameters'])} parameters, {amount(told['active'])} active",
        "",
        f"  x = embedding[token]{scaled}".ljust(40) + f"{spec.vocab:,} x {spec.width:,}",
    ]
    for run in spec.runs:
        last = run.start + len(run.period) * run.repeats - 1
        lines += ["", f"  layers {run.start}-{last}: {run.repeats} x" if last > run.start else f"  layer {last}:"]
        for layer, group in groupby(run.period):
            count = len(list(group))
            for what, words in (("attention", _attention(layer.attention, True)), ("mlp", _mlp(layer.mlp, True))):
                times = f"  ({count} such layers)" if count > 1 and what == "attention" else ""
                lines.append(f"    x = {_step(layer.block, what)}".ljust(40) + words + times)
    softcap = f" -> {spec.logit_softcap:g} tanh(. / {spec.logit_softcap:g})" if spec.logit_softcap else ""
    head = f"{'embedding' if spec.tied else 'head'} . norm(x){softcap}"
    lines += ["", f"  logits = {head}".ljust(40) + _norm(spec.final_norm), ""]
    lines += [f"  {part:<18}{amount(n):>10}  {n / told['parameters']:6.1%}" for part, n in told["parts"].items()]
    bodies = sum(len(run.period) for run in spec.runs)
    return "\n".join(
        [
            *lines,
            "",
            f"  {amount(told['flops_per_token'])} FLOPs a token forward at {told['cache_length']:,} tokens",
            f"  {amount(told['cache_bytes'])}B of bfloat16 cache for {told['cache_length']:,} tokens, "
            f"{told['cache_bytes_per_token']:,} B for one more; all keys and values would take "
            f"{amount(told['full_cache_bytes'])}B",
            f"  {spec.depth} layers in {len(told['runs'])} runs: {bodies} layer bodies to compile",
        ]
    )


def difference(a: Spec, b: Spec) -> dict[str, Any]:
    """What differs: spec fields by path, and the numbers that follow, each as [a's, b's]."""
    ours, theirs = ({p: _json(v) for p, v in spec.paths().items()} for spec in (a, b))
    fields = {p: [ours.get(p), theirs.get(p)] for p in {**ours, **theirs} if ours.get(p) != theirs.get(p)}
    one, two = summary("", a), summary("", b)
    numbers = ("parameters", "active", "flops_per_token", "cache_bytes_per_token", "cache_bytes")
    return {"fields": fields, "numbers": {key: [one[key], two[key]] for key in numbers}}


def amount(count: float) -> str:
    """1234567 -> 1.23M."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= 0.9995 * unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:g}"


# --- words -----------------------------------------------------------------------------------------------------------


def _words(layer: Layer) -> dict[str, str]:
    return {
        "attention": _attention(layer.attention, full=True),
        "mlp": _mlp(layer.mlp, full=True),
        "norms": _placement(layer.block),
    }


def _full(spec: Any) -> int:
    """Numbers that the keys and values of all its key-value heads are, for one token."""
    if isinstance(spec, LatentAttention):
        return spec.heads * (spec.nope_dim + spec.rope.dim + spec.value_dim)
    return 2 * spec.kv_heads * spec.head_dim if isinstance(spec, Attention) else 0


def _attention(spec: Any, full: bool = False) -> str:
    if isinstance(spec, LatentAttention):
        return "MLA" + (f", {spec.heads} heads, latent {spec.kv_rank} + {spec.rope.dim}" if full else "")
    if not isinstance(spec, Attention):
        return type(spec).__name__
    kind = "MHA" if spec.kv_heads == spec.heads else "MQA" if spec.kv_heads == 1 else "GQA"
    words = kind if spec.window is None else f"{kind} window {spec.window}"
    if not full:
        return words
    words += f", {spec.heads} heads on {spec.kv_heads} of {spec.head_dim}"
    words += f", QK-norm per {spec.qk_norm.over}" if spec.qk_norm else ""
    return words + (f", rope {spec.rope.theta:g}" if spec.rope else ", no rope")


def _mlp(spec: Any, full: bool = False) -> str:
    if isinstance(spec, MoE):
        words = f"{spec.experts} experts top-{spec.router.top_k}" + (" + shared" if spec.shared else "")
        return words + (f" of {spec.ffn:,}, {spec.router.score} router" if full else "")
    return f"gated MLP {spec.ffn:,}" if full and hasattr(spec, "ffn") else "dense"


def _placement(block: Any) -> str:
    placements = {"before": "pre", "after": "inner post", "outer": "post", "before after": "sandwich"}
    present = " ".join(place for place in ("before", "after", "outer") if getattr(block, place, None))
    return placements.get(present, present or type(block).__name__)


def _step(block: Any, part: str) -> str:
    """What a block does to x around one of its parts, as a formula."""
    if not isinstance(block, Residual):
        return f"{type(block).__name__}({part}, x)"
    inner = f"{part}(norm(x))" if block.before else f"{part}(x)"
    inner = f"norm({inner})" if block.after else inner
    return f"norm(x + {inner})" if block.outer else f"x + {inner}"


def _norm(norm: Any) -> str:
    return type(norm).__name__ + (" (1 + scale)" if getattr(norm, "zero_centred", False) else "")


def _counted(words: Any) -> list[str]:
    counts = Counter(words)
    return [word if len(counts) == 1 else f"{count} {word}" for word, count in counts.items()]


def _json(value: Any) -> Any:
    return "..." if value is Ellipsis else list(value) if isinstance(value, tuple) else value
