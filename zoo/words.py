"""Specs of layers in words: what a layer is in short, then lines on how.

A table by type says how each is told. One that is not in it, such as a user's own, is told by its type and its fields.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

from ..layers.attention import Attention
from ..layers.beside import Beside
from ..layers.bounded import Bounded, Clamped
from ..layers.chunked import ChunkedAttention
from ..layers.compressed import CompressedAttention
from ..layers.delta import GatedDelta
from ..layers.expert import GatedExpert
from ..layers.hashed import HashRouter
from ..layers.indexer import Borrowed, Indexer
from ..layers.kda import KimiDelta
from ..layers.latent import LatentAttention
from ..layers.lent import NormedAttention
from ..layers.mamba2 import Mamba2
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.narrow import NarrowMoE
from ..layers.plain import MLP, PlainExpert
from ..layers.rope import Linear, Llama3, LongRope, Proportional, Yarn
from ..layers.router import Router
from ..layers.scaled_input import ScaledInputExpert
from ..layers.shortcut import Shortcut
from ..layers.single import Absent
from ..layers.weighed import WeighedMLP
from .amounts import amount

Words = tuple[str, ...]
T = TypeVar("T")


def entry(table: Mapping[type, T], spec: Any) -> T | None:
    """What a table by type has for the spec's, or for the nearest that it is made of."""
    return next((table[kind] for kind in type(spec).__mro__ if kind in table), None)


def words_of(spec: Any) -> Words:
    """What a layer is in short, then how, a line each; empty for one that is absent."""
    tell = entry(WORDS, spec)
    return plain(spec) if tell is None else tuple(line for line in tell(spec) if line)


def plain(spec: Any) -> Words:
    """A spec in its own words: CamelCase apart, then fields that are set, three a line."""
    told = rest(spec, set())
    return spoken(type(spec)), *(", ".join(told[i : i + 3]) for i in range(0, len(told), 3))


def spoken(kind: type) -> str:
    """GatedDelta -> Gated Delta."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", kind.__name__)


def rest(spec: Any, known: set[str]) -> list[str]:
    """The fields beside the known ones that are not at their defaults."""
    told = []
    for field in fields(spec):
        value, said = getattr(spec, field.name), field.name.replace("_", " ")
        if field.name in known or value == field.default or value is None:
            continue
        if isinstance(value, bool | int | float | str):
            told.append(said if value is True else f"{said} {value}")
        else:
            told.append(f"{said} of {len(value)}" if isinstance(value, tuple) else spoken(type(value)))
    return told


def words_of_norm(norm: Any) -> str:
    return type(norm).__name__ + (" (1 + scale)" if getattr(norm, "zero_centred", False) else "")


def words_of_router(router: Any) -> str:
    groups = getattr(router, "groups", None)
    limited = f", {groups.kept} of {groups.count} groups" if groups else ""
    named, score = entry(ROUTERS, router), str(getattr(router, "score", ""))
    by = spoken(type(router)) if named is None else named
    return ", ".join(word for word in (by, score) if word) + limited + (" + bias" if getattr(router, "bias", 0) else "")


def words_of_rope(rope: Any, dim: int | None = None) -> str:
    """dim: of a head of which rope may turn a part."""
    share = getattr(rope and rope.scaling, "share", 1.0)
    if rope is None or share == 0:
        return "no rope"
    part = f" on {rope.dim} of {dim}" if dim not in (None, rope.dim) else ""
    scaling = rope.scaling and next(
        (SCALINGS[k](rope.scaling) for k in type(rope.scaling).__mro__ if k in SCALINGS), ""
    )
    return f"rope {amount(rope.theta)}{part}" + (f", {scaling}" if scaling else "")


# --- attention -------------------------------------------------------------------------------------------------------


def _heads(spec: Any) -> str:
    return "MHA" if spec.kv_heads == spec.heads else "MQA" if spec.kv_heads == 1 else "GQA"


def _attention(spec: Attention, seen: str = "window") -> Words:
    norm, values, scores = spec.qk_norm, spec.values, spec.scores
    known = {"heads", "kv_heads", "head_dim", "rope", "window", "qk_norm", "values", "bias", "gate", "scores"}
    return (
        _heads(spec) + (f" {seen} {spec.window}" if spec.window else ""),
        f"{spec.heads} heads on {spec.kv_heads} of {spec.head_dim}",
        f"values of {values.dim}" + (f", times {values.scale:g}" if values.scale != 1 else "") if values else "",
        f"QK-norm per {norm.over}" + " after rope" * norm.after_rope if norm else "",
        words_of_rope(spec.rope, spec.head_dim),
        f"bias of {', '.join(spec.bias)}" if spec.bias else "",
        "output gate" if spec.gate else "",
        "a sink for each head" if scores.sinks else "",
        f"scores capped at {scores.softcap:g}" if scores.softcap else "",
        "late queries sharpened" if scores.temperature else "",
        *rest(spec, known),
    )


def _latent(spec: LatentAttention) -> Words:
    chosen = spec.indexer.top_k if spec.indexer else 0
    indexed = entry(INDEXERS, spec.indexer)
    return (
        "MLA" + (f" top-{chosen:,}" if chosen else ""),
        f"{spec.heads} heads on a latent of {spec.kv_rank} + {spec.rope.dim}",
        f"heads of {spec.nope_dim} + {spec.rope.dim}, values of {spec.value_dim}",
        f"queries of rank {spec.q_rank:,}" if spec.q_rank else "",
        words_of_rope(spec.rope),
        indexed(spec.indexer) if indexed else "",
        "late queries sharpened" if spec.temperature else "",
        *rest(spec, {f.name for f in fields(LatentAttention)}),
    )


def _compressed(spec: CompressedAttention) -> Words:
    entries = spec.compressor
    chooser = entries.chooser if entries else None
    before = f" + 1/{entries.every}" + (f" top-{chooser.top_k:,}" if chooser else "") if entries else ""
    return (
        f"MQA window {spec.window}{before}",
        f"{spec.heads} heads of {spec.head_dim} on one",
        "keys are values",
        f"queries of rank {spec.q_rank:,}",
        f"outputs in {spec.groups} groups of rank {spec.out_rank:,}",
        f"each {entries.every} before are one entry" if entries else "",
        f"{chooser.top_k:,} chosen by {chooser.heads} heads of {chooser.dim}" if chooser else "",
        words_of_rope(spec.rope, spec.head_dim),
    )


def _normed(spec: NormedAttention) -> Words:
    return (
        _heads(spec) + (f" window {spec.window}" if spec.window else "") + (" on lent keys" if spec.borrows else ""),
        f"{spec.heads} heads on {spec.kv_heads} of {spec.head_dim}",
        "no keys of its own" if spec.borrows else "queries, keys and values normed",
        "keys are values" if spec.shared_value else "",
        words_of_rope(spec.rope, spec.head_dim),
        "lends its keys and values" if spec.lends else "",
    )


def _gated_delta(spec: GatedDelta) -> Words:
    keys, values = (spec.key_heads, spec.key_dim), (spec.value_heads, spec.value_dim)
    heads = f"{keys[0]} heads of keys of {keys[1]}", f"{values[0]} heads of values of {values[1]}"
    return "Gated DeltaNet", *heads, f"convolution over {spec.taps}", "corrects up to twice" * (spec.reach == 2)


def _kimi_delta(spec: KimiDelta) -> Words:
    rank = f"decay and gate of rank {spec.rank}"
    return "KDA", f"{spec.heads} heads of {spec.head_dim}", rank, f"convolution over {spec.taps}"


def _mamba2(spec: Mamba2) -> Words:
    heads = f"{spec.heads} heads of {spec.head_dim}, state of {spec.state_dim}"
    return "Mamba-2", heads, f"{spec.groups} groups, convolution over {spec.taps}", "bias" * spec.bias


# --- MLPs and experts ------------------------------------------------------------------------------------------------


def words_of_activation(activation: Any) -> str:
    if isinstance(activation, str):
        return activation
    return next(
        (GATES[kind](activation) for kind in type(activation).__mro__ if kind in GATES), spoken(type(activation))
    )


def _gated(spec: GatedMLP) -> Words:
    known = {"ffn", "activation"}
    return "dense", f"gated, of {spec.ffn:,}, {words_of_activation(spec.activation)}", *rest(spec, known)


def _not_gated(spec: MLP) -> Words:
    return "dense", f"not gated, of {spec.ffn:,}, {spec.activation}", *rest(spec, {"ffn", "activation"})


def _experts(spec: MoE) -> Words:
    nothing = f" and {spec.identities} of nothing" if spec.identities else ""
    short = f"{spec.experts} experts{nothing} top-{spec.router.top_k}"
    tell = entry(EXPERTS, spec.expert)
    of = spoken(type(spec.expert)) if tell is None else tell(spec.expert)
    return (
        short + (" + shared" if spec.shared else ""),
        f"of {spec.ffn:,}" + (f", {of}" if of else ""),
        words_of_router(spec.router),
        _shared(spec.shared),
        *rest(spec, {f.name for f in fields(MoE)}),
    )


def _shared(shared: Any) -> str:
    how = ", weighed" if isinstance(shared, WeighedMLP) else ""
    return f"shared one of {shared.ffn:,}{how}" if shared else ""


def _gated_expert(expert: GatedExpert) -> str:
    how = "" if expert.activation == "silu" else words_of_activation(expert.activation)
    return ", ".join(word for word in (how, "bias" * expert.bias) if word)


def _narrow(spec: NarrowMoE) -> Words:
    short, *how = words_of(spec.experts)
    return short + (" + shared" if spec.shared else ""), f"at a width of {spec.width:,}", *how, _shared(spec.shared)


def _beside(spec: Beside) -> Words:
    (dense, *of), (experts, *how) = words_of(spec.dense), words_of(spec.experts)
    return f"{dense} + {experts}", "each between norms, and their sum", *of, *how


def _shortcut(spec: Shortcut) -> Words:
    """What is beside the experts is told step by step (steps.py)."""
    (experts, *how), between = words_of(spec.experts), (spec.first, spec.attention, spec.second)
    return f"{' + '.join(words_of(part)[0] for part in between)} beside {experts}", *how


# --- the tables ------------------------------------------------------------------------------------------------------

WORDS: Mapping[type, Callable[[Any], Words]] = {
    Attention: _attention,
    ChunkedAttention: partial(_attention, seen="chunk"),
    LatentAttention: _latent,
    CompressedAttention: _compressed,
    NormedAttention: _normed,
    GatedDelta: _gated_delta,
    KimiDelta: _kimi_delta,
    Mamba2: _mamba2,
    GatedMLP: _gated,
    MLP: _not_gated,
    MoE: _experts,
    NarrowMoE: _narrow,
    Beside: _beside,
    Shortcut: _shortcut,
    Absent: lambda _: (),
}
EXPERTS: Mapping[type, Callable[[Any], str]] = {
    GatedExpert: _gated_expert,
    PlainExpert: lambda expert: f"not gated, {expert.activation}",
    ScaledInputExpert: lambda _: "input times its weight",
}
GATES: Mapping[type, Callable[[Any], str]] = {
    Bounded: lambda gate: f"silu, bounded by {gate.limit:g}",
    Clamped: lambda gate: f"clamped swish, bounded by {gate.limit:g}",
}
ROUTERS: Mapping[type, str] = {Router: "", HashRouter: "routed by a table of tokens"}
INDEXERS: Mapping[type, Callable[[Any], str]] = {
    Indexer: lambda of: f"tokens chosen by {of.heads} heads of {of.dim}" + (", lent on" if of.lends else ""),
    Borrowed: lambda _: "tokens chosen by an earlier layer",
}
SCALINGS: Mapping[type, Callable[[Any], str]] = {
    Linear: lambda by: f"linear x {by.factor:g}",
    Llama3: lambda by: f"llama3 x {by.factor:g}",
    Yarn: lambda by: f"YaRN x {by.factor:g}",
    LongRope: lambda by: f"LongRoPE x {by.factor:g}",
    Proportional: lambda by: f"{by.share:.0%} turning",
}
