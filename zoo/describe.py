"""Specs in words and numbers: a line of a table, a model drawn as text, the difference of two."""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

from ..layers.accounting import is_predictor, leaves
from ..layers.attention import Attention
from ..layers.block import Parallel, Residual
from ..layers.chunked import ChunkedAttention
from ..layers.decoder import Layer, Spec
from ..layers.expert import GatedExpert
from ..layers.latent import LatentAttention
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.shortcut import Shortcut

LENGTH = 4096
"""Tokens for which FLOPs and cache are told, where the model takes so many."""


def summary(name: str, spec: Spec, length: int = LENGTH) -> dict[str, Any]:
    """The line of a model in a table: plain data. FLOPs and bfloat16 cache are those of `length` tokens, if it takes so
    many; full_cache_bytes is what every head's keys and values at every token would take.
    """
    length, mlps = min(length, spec.max_length), [layer.mlp for layer in spec.layers]
    grown = spec.cache_bytes(1, length) - spec.cache_bytes(1, length - 1)
    return {
        "name": name,
        "family": spec.hf.family if spec.hf else "",
        "parameters": spec.param_count(),
        "active": spec.active_param_count(),
        "layers": spec.depth,
        "width": spec.width,
        "attention": " + ".join(_counted(words_of_attention(layer.attention)[0] for layer in spec.layers)),
        "mlp": " + ".join(_counted(words_of_mlp(layer.mlp)[0] for layer in spec.layers)),
        "router": " + ".join(dict.fromkeys(words_of_router(mlp.router) for mlp in mlps if hasattr(mlp, "router"))),
        "norm": " + ".join(_counted(words_of_block(layer.block) for layer in spec.layers)),
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
    for leaf in (leaf for leaf in leaves(spec) if not is_predictor(leaf)):
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
            for what, words in (("attention", words_of_attention(layer.attention)), ("mlp", words_of_mlp(layer.mlp))):
                times = f"  ({count} such layers)" if count > 1 and what == "attention" else ""
                lines.append(f"    x = {_step(layer.block, what)}".ljust(40) + ", ".join(words) + times)
    times = f" * {spec.logit_scale:.4g}" if spec.logit_scale != 1 else ""
    softcap = f" -> {spec.logit_softcap:g} tanh(. / {spec.logit_softcap:g})" if spec.logit_softcap else ""
    head = f"{'embedding' if spec.tied else 'head'} . norm(x){times}{softcap}"
    lines += ["", f"  logits = {head}".ljust(40) + words_of_norm(spec.final_norm), ""]
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


def aspects(spec: Spec) -> dict[str, str]:
    """What a model is, in words: what one would compare first."""

    def told(part: str, words: Callable[[Any], Any]) -> str:
        found = dict.fromkeys(words(getattr(layer, part)) for layer in spec.layers)
        return "; ".join(w if isinstance(w, str) else ", ".join(w) for w in found)

    ends = ["tied" if spec.tied else "untied"]
    ends += [f"embedding times {spec.embedding_scale:.4g}"] if spec.embedding_scale != 1 else []
    ends += [f"logits times {spec.logit_scale:.4g}"] if spec.logit_scale != 1 else []
    ends += [f"logits capped at {spec.logit_softcap:g}"] if spec.logit_softcap else []
    ends += [f"{spec.mtp.depth} modules of multi-token prediction"] if spec.mtp else []
    return {
        "attention": told("attention", words_of_attention),
        "mlp": told("mlp", words_of_mlp),
        "norms": f"{told('block', words_of_block)}, {words_of_norm(spec.final_norm)}",
        "ends": ", ".join(ends),
        "order": summary("", spec)["attention"] + "; " + summary("", spec)["mlp"],
    }


def difference(a: Spec, b: Spec) -> dict[str, Any]:
    """What differs, each as [a's, b's]: aspects in words, spec fields by path, and the numbers that follow."""
    ours, theirs = ({p: _json(v) for p, v in spec.paths().items()} for spec in (a, b))
    changed = {p: [ours.get(p), theirs.get(p)] for p in {**ours, **theirs} if ours.get(p) != theirs.get(p)}
    one, two = summary("", a), summary("", b)
    numbers = ("parameters", "active", "flops_per_token", "cache_bytes_per_token", "cache_bytes")
    said, other = aspects(a), aspects(b)
    words = {aspect: [said[aspect], other[aspect]] for aspect in said if said[aspect] != other[aspect]}
    return {"words": words, "fields": changed, "numbers": {key: [one[key], two[key]] for key in numbers}}


def amount(count: float) -> str:
    """1234567 -> 1.23M."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= 0.9995 * unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:g}"


# --- words -----------------------------------------------------------------------------------------------------------

SMALL = (bool, int, float, str)


def _words(layer: Layer) -> dict[str, str]:
    return {
        "attention": ", ".join(words_of_attention(layer.attention)),
        "mlp": ", ".join(words_of_mlp(layer.mlp)),
        "norms": words_of_block(layer.block),
    }


@runtime_checkable
class Routed(Protocol):
    """Experts of any kind."""

    experts: int
    ffn: int
    router: Any


def _full(spec: Any) -> int:
    """Numbers that the keys and values of all its key-value heads are, for one token."""
    if isinstance(spec, LatentAttention):
        return spec.heads * (spec.nope_dim + spec.rope.dim + spec.value_dim)
    if isinstance(spec, Shortcut):
        return _full(spec.attention)
    if not isinstance(spec, Attention):
        return 0
    return spec.kv_heads * (spec.head_dim + (spec.head_dim if spec.values is None else spec.values.dim))


def words_of_attention(spec: Any) -> tuple[str, ...]:
    """What it is in short, and lines on how: of a spec that is not one of ours, its type and fields."""
    if isinstance(spec, LatentAttention):
        queries = f"query rank {spec.q_rank}, " if spec.q_rank else ""
        return "MLA", f"{spec.heads} heads on a latent of {spec.kv_rank} + {spec.rope.dim}", queries + _rope(spec.rope)
    if not isinstance(spec, Attention):
        return _plain(spec)
    kind = "MHA" if spec.kv_heads == spec.heads else "MQA" if spec.kv_heads == 1 else "GQA"
    seen = "chunk" if isinstance(spec, ChunkedAttention) else "window"
    short = kind if spec.window is None else f"{kind} {seen} {spec.window}"
    lines = [f"{spec.heads} heads on {spec.kv_heads} of {spec.head_dim}"]
    lines += [f"QK-norm per {spec.qk_norm.over}" + " after rope" * spec.qk_norm.after_rope] if spec.qk_norm else []
    known = {"heads", "kv_heads", "head_dim", "rope", "window", "qk_norm", "scores"}
    return short, *lines, _rope(spec.rope), *_rest(spec, known), *_rest(spec.scores, {"scale"})


def words_of_mlp(spec: Any) -> tuple[str, ...]:
    if isinstance(spec, Routed):
        expert = getattr(spec, "expert", GatedExpert())
        shared = " + shared" if getattr(spec, "shared", None) else ""
        nothing = f" and {count} of nothing" if (count := getattr(spec, "identities", 0)) else ""
        short = f"{spec.experts} experts{nothing} top-{spec.router.top_k}{shared}"
        kind = () if isinstance(spec, MoE) else _plain(spec)[:1]
        kind += _plain(expert) if expert != GatedExpert() else ()
        rest = _rest(spec, {"experts", "ffn", "router", "shared", "identities", "expert"})
        return short, f"of {spec.ffn:,}", words_of_router(spec.router), *kind, *rest
    if isinstance(spec, Shortcut):
        between = (words_of_mlp(spec.first), words_of_attention(spec.attention), words_of_mlp(spec.second))
        short, *lines = words_of_mlp(spec.experts)
        return f"{' + '.join(words[0] for words in between)} beside {short}", *lines
    if isinstance(spec, GatedMLP):
        return "dense", f"gated, of {spec.ffn:,}, {spec.activation}", *_rest(spec, {"ffn", "activation"})
    return _plain(spec)


def words_of_router(router: Any) -> str:
    words = str(getattr(router, "score", type(router).__name__))
    groups = getattr(router, "groups", None)
    words += f", {groups.kept} of {groups.count} groups" if groups else ""
    return words + (" + bias" if getattr(router, "bias", False) else "")


def words_of_block(block: Any) -> str:
    placements = {"before": "pre", "after": "inner post", "outer": "post", "before after": "sandwich"}
    present = " ".join(place for place in ("before", "after", "outer") if getattr(block, place, None))
    placement = placements.get(present, present)
    return placement if isinstance(block, Residual) else f"{placement} {type(block).__name__.lower()}".strip()


def words_of_norm(norm: Any) -> str:
    return type(norm).__name__ + (" (1 + scale)" if getattr(norm, "zero_centred", False) else "")


def _rope(rope: Any) -> str:
    if rope is None:
        return "no rope"
    scaling = f" {type(rope.scaling).__name__}" if rope.scaling else ""
    return f"rope {rope.theta:g}{scaling}"


def _plain(spec: Any) -> tuple[str, ...]:
    """A spec in its own words: CamelCase apart, then fields that are set, three a line."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", type(spec).__name__)
    told = _rest(spec, set())
    return name, *(", ".join(told[i : i + 3]) for i in range(0, len(told), 3))


def _rest(spec: Any, known: set[str]) -> list[str]:
    """The fields beside the known ones that are not at their defaults."""
    told = []
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name in known or value == field.default or value is None:
            continue
        said = field.name.replace("_", " ")
        told.append(said if value is True else f"{said} {value}" if isinstance(value, SMALL) else _kind(value, said))
    return told


def _kind(value: Any, field: str) -> str:
    kind = type(value).__name__
    return f"{field} of {len(value)}" if isinstance(value, tuple) else kind


def _step(block: Any, part: str) -> str:
    """What a block does to x around one of its parts, as a formula."""
    if isinstance(block, Parallel):
        return f"x + {part}({'norm(input)' if block.before else 'input'})"
    if not isinstance(block, Residual):
        return f"{type(block).__name__}({part}, x)"
    inner = f"{part}(norm(x))" if block.before else f"{part}(x)"
    inner = f"norm({inner})" if block.after else inner
    inner = f"{block.scale:g} {inner}" if getattr(block, "scale", 1.0) != 1 else inner
    return f"norm(x + {inner})" if block.outer else f"x + {inner}"


def _counted(words: Any) -> list[str]:
    counts = Counter(words)
    counts.pop("Absent", None)  # a layer of one mixer alone has nothing in the place of the other
    return [word if len(counts) == 1 else f"{count} x {word}" for word, count in counts.items()]


def _json(value: Any) -> Any:
    return "..." if value is Ellipsis else list(value) if isinstance(value, tuple) else value
