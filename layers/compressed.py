"""Compressed sparse attention and heavily compressed attention: DeepSeek-V4 (DeepSeek-AI 2026), section 2.3.

A query sees the last `window` tokens as they are, and before it runs of tokens compressed into one entry each
(compressor.py), of which a lightning indexer (indexer.py), here over compressed keys, may choose the best. One head of
keys serves all queries and is its own values: what it carries of rotation is turned back, at the query's position, out
of what attention gives. Each head has a sink. The output projection goes group of heads by group, through a narrow
layer.

Dimensions: B batch, L queries, M keys, N entries, J chosen entries, S slots, D width, Q query latent, K groups of heads
in the output, G heads of a group, H heads in all, E head_dim, C output latent of a group, A of all groups, I indexer
heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from .cache import held_slots, new_slots
from .compressor import CompressorShell, Pooled, compressor_cache, rotate_last
from .dense import attach, project, weight
from .execution import Execution
from .indexer import Candidates, Query, scores
from .norms import RMSNorm, rms_norm
from .products import HIDDEN, mean_keys
from .rope import Rope
from .spec import Context, require

AXES = {
    "D": "width",
    "Q": "q_rank",
    "K": "kv_heads",
    "G": "q_per_kv",
    "E": "head_dim",
    "C": "kv_rank",
    "A": "kv_rank",
    "I": "heads",
    "U": "head_dim",
    "T": "taps",
    "B": "batch",
    "S": "length",
    "N": "length",
    "P": "taps",
}

QUERY_BLOCK = 32
"""Queries at a time: each may gather entries of its own."""


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """`heads` heads of `dim` dimensions choose the `top_k` entries that a query sees."""

    heads: int
    dim: int
    top_k: int

    def __post_init__(self) -> None:
        for field in ("heads", "dim", "top_k"):
            require(self, getattr(self, field) > 0, field, "it must be positive")


@dataclass(frozen=True, kw_only=True)
class Compressor:
    """`every` so many tokens become an entry; overlap: it reads the run before as well.  chooser: of the entries that
    a query sees; None for all.
    """

    every: int
    overlap: bool = False
    chooser: Chooser | None = None

    def __post_init__(self) -> None:
        require(self, self.every > 0, "every", "it must be positive")


@dataclass(frozen=True, kw_only=True)
class CompressedAttention:
    """`heads` heads of `head_dim` dimensions, the last of which rope rotates, over one head of keys.

    q_rank, out_rank: widths of the latents of queries, and of the output of each of `groups` groups of heads.
    window: how many tokens a query sees as they are.  compressor: of those before; None for a window alone.
    norm: of latents, keys and entries."""

    heads: int
    groups: int
    head_dim: int
    q_rank: int
    out_rank: int
    rope: Rope
    window: int
    compressor: Compressor | None = None
    norm: RMSNorm = RMSNorm()

    def __post_init__(self) -> None:
        for field in ("heads", "groups", "head_dim", "q_rank", "out_rank", "window"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        divides = self.heads % self.groups == 0
        require(self, divides, "heads", f"it must be a multiple of groups, which is {self.groups}")
        chooser = self.compressor and self.compressor.chooser
        for name, dim in (("head_dim", self.head_dim), *([("chooser.dim", chooser.dim)] if chooser else [])):
            if self.rope.dim > dim:
                raise ValueError(
                    f"CompressedAttention.rope.dim is {self.rope.dim}: it cannot exceed {name}, which is {dim}"
                )

    def shell(self, execution: Execution) -> nn.Module:
        return CompressedAttentionShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        entries = {"k_BSE": jax.ShapeDtypeStruct((batch, min(self.window, length), self.head_dim), dtype)}
        for name, dim in self.compressed().items():
            assert self.compressor is not None
            kept = compressor_cache(batch, length, dim, self.compressor.every, self.compressor.overlap, dtype)
            entries |= {f"{name}_{entry}": shape for entry, shape in kept.items()}
        return entries

    def compressed(self) -> dict[str, int]:
        """What is compressed, by name: entries, and the keys by which they are chosen; and their dimensions."""
        if self.compressor is None:
            return {}
        chooser = self.compressor.chooser
        return {"compressor": self.head_dim, **({} if chooser is None else {"index": chooser.dim})}

    def flops(self, length: int) -> float:
        keys = mean_keys(length, self.window)
        choosing = 0.0
        if self.compressor is not None:
            entries, chooser = (length + 1) / 2 / self.compressor.every, self.compressor.chooser
            keys += entries if chooser is None else min(entries, chooser.top_k)
            choosing = 0.0 if chooser is None else 2 * chooser.heads * (chooser.dim + 1) * entries
        return 4 * self.heads * self.head_dim * keys + choosing


class Local(NamedTuple):
    """Tokens as they are: keys, place in the row (-1 for nothing there), packed document."""

    k_BME: jax.Array
    slots_BM: jax.Array
    segments_BM: jax.Array | None


class Seen(NamedTuple):
    """What the queries see besides tokens: entries, and how to choose among them."""

    pooled: Pooled
    chosen_by: Pooled | None = None
    top_k: int = 0


class Queries(NamedTuple):
    """places_BL: where a query stands among the ends of entries.  choose: its queries of entries, and their weights."""

    q_BLHE: jax.Array
    slots_BL: jax.Array
    places_BL: jax.Array
    segments_BL: jax.Array | None
    choose: tuple[jax.Array, jax.Array] | None


def attend_compressed(
    queries: Queries, held: Local | None, new: Local, seen: Seen | None, sinks_H: jax.Array, window: int, scale: float
) -> jax.Array:
    """[B, L, H, E]: one softmax, in float32, over the window, the entries and the sink.

    A few queries at a time, each block against the new tokens that its window reaches, and against all that is held."""
    length = queries.q_BLHE.shape[1]
    if length <= QUERY_BLOCK:
        parts = [new] if held is None else [held, new]
        return _block(queries, parts, seen, sinks_H, window, scale)
    count, before = -(-length // QUERY_BLOCK), window - 1

    def cut(x_BL: jax.Array) -> jax.Array:
        widths = [(0, 0), (0, count * QUERY_BLOCK - length)] + [(0, 0)] * (x_BL.ndim - 2)
        x_BL = jnp.pad(x_BL, widths)
        return jnp.moveaxis(x_BL.reshape(x_BL.shape[0], count, QUERY_BLOCK, *x_BL.shape[2:]), 1, 0)

    def around(x_BM: jax.Array) -> jax.Array:
        widths = [(0, 0), (before, count * QUERY_BLOCK - length)] + [(0, 0)] * (x_BM.ndim - 2)
        return jnp.pad(x_BM, widths, constant_values=-1)

    padded = jax.tree.map(around, new)

    def block(given: tuple[jax.Array, Queries]) -> jax.Array:
        i, some = given
        size = QUERY_BLOCK + before
        near = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * QUERY_BLOCK, size, axis=1), padded)
        return _block(some, [near] if held is None else [held, near], seen, sinks_H, window, scale)

    out = jax.lax.map(jax.checkpoint(block), (jnp.arange(count), jax.tree.map(cut, queries)))
    return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], count * QUERY_BLOCK, *out.shape[3:])[:, :length]


def _block(
    queries: Queries, parts: list[Local], seen: Seen | None, sinks_H: jax.Array, window: int, scale: float
) -> jax.Array:
    q_BLHE, slots_BL1 = queries.q_BLHE, queries.slots_BL[..., None]
    logits, values = [], []
    for part in parts:
        slots_B1M = part.slots_BM[:, None]
        sees_BLM = (slots_B1M >= 0) & (slots_B1M <= slots_BL1) & (slots_BL1 - slots_B1M < window)
        sees_BLM = _same(sees_BLM, queries.segments_BL, part.segments_BM)
        s_BLHM = jnp.einsum("BLHE,BME->BLHM", q_BLHE, part.k_BME, preferred_element_type=jnp.float32) * scale
        logits.append(jnp.where(sees_BLM[:, :, None], s_BLHM, HIDDEN))
        values.append(("BLHM,BME->BLHE", part.k_BME))
    if seen is not None:
        pooled = seen.pooled
        if seen.chosen_by is not None and seen.top_k < pooled.entries_BNE.shape[1]:
            assert queries.choose is not None
            among = Candidates(seen.chosen_by.entries_BNE, seen.chosen_by.ends_BN, seen.chosen_by.segments_BN)
            query = Query(*queries.choose, queries.places_BL, queries.segments_BL)
            best_BLJ, entry_BLJ = jax.lax.top_k(jax.lax.stop_gradient(scores(query, among)), seen.top_k)
            sees_BLM = best_BLJ > HIDDEN
            k_BLJE = jax.vmap(lambda k_NE, entry_LJ: k_NE[entry_LJ])(pooled.entries_BNE, entry_BLJ)
            s_BLHM = jnp.einsum("BLHE,BLJE->BLHJ", q_BLHE, k_BLJE, preferred_element_type=jnp.float32)
            values.append(("BLHJ,BLJE->BLHE", k_BLJE))
        else:
            sees_BLM = pooled.ends_BN[:, None] <= queries.places_BL[..., None]
            sees_BLM = _same(sees_BLM, queries.segments_BL, pooled.segments_BN)
            k_BNE = pooled.entries_BNE
            s_BLHM = jnp.einsum("BLHE,BNE->BLHN", q_BLHE, k_BNE, preferred_element_type=jnp.float32)
            values.append(("BLHN,BNE->BLHE", k_BNE))
        logits.append(jnp.where(sees_BLM[:, :, None], s_BLHM * scale, HIDDEN))
    sinks_BLH1 = jnp.broadcast_to(sinks_H[:, None], (*q_BLHE.shape[:3], 1))
    weights = jax.nn.softmax(jnp.concatenate([*logits, sinks_BLH1], axis=-1), axis=-1).astype(q_BLHE.dtype)
    out_BLHE, start = jnp.zeros((), jnp.float32), 0
    for logit, (formula, value) in zip(logits, values, strict=True):
        part_BLHM = weights[..., start : start + logit.shape[-1]]
        out_BLHE += jnp.einsum(formula, part_BLHM, value, preferred_element_type=jnp.float32)
        start += logit.shape[-1]
    return out_BLHE.astype(q_BLHE.dtype)


def _same(sees_BLM: jax.Array, queries_BL: jax.Array | None, keys_BM: jax.Array | None) -> jax.Array:
    """Of what is seen, what is of the same document."""
    if queries_BL is None or keys_BM is None:
        return sees_BLM
    return sees_BLM & (queries_BL[..., None] == keys_BM[:, None])


class CompressedAttentionShell(nn.Module):
    spec: CompressedAttention
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s, positions_BL = self.spec, context.positions_BL
        chooser = s.compressor.chooser if s.compressor is not None else None
        sizes = {"D": x_BLD.shape[-1], "Q": s.q_rank, "K": s.groups, "G": s.heads // s.groups, "E": s.head_dim}
        sizes |= {"C": s.out_rank, "A": s.groups * s.out_rank, "I": chooser.heads if chooser else 0}
        w = partial(weight, self, execution=self.execution)
        q_BLQ = project("BLD,DQ->BLQ", x_BLD, w("wq_down_DQ", sizes, "D"))
        q_BLQ = attach(self, s.norm.shell(self.execution, "Q"), "q_norm")(q_BLQ)
        q_BLKGE = rms_norm(project("BLQ,QKGE->BLKGE", q_BLQ, w("wq_up_QKGE", sizes, "Q")), None, s.norm.eps)
        q_BLKGE = rotate_last(q_BLKGE, positions_BL, s.rope)
        k_BLE = project("BLD,DE->BLE", x_BLD, w("wk_DE", sizes, "D"))
        k_BLE = attach(self, s.norm.shell(self.execution, "E"), "k_norm")(k_BLE)
        k_BLE = rotate_last(k_BLE, positions_BL, s.rope)

        entries = {"k_BSE": k_BLE[:, -s.window :]}
        new = Local(k_BLE, jnp.broadcast_to(new_slots(context), x_BLD.shape[:2]), context.segments_BL)
        held = None
        if cache is not None:
            k_BSE = cache["k_BSE"].astype(x_BLD.dtype)
            held = Local(k_BSE, held_slots(context, k_BSE.shape[1]), None)
        pools: dict[str, Pooled] = {}
        for name, dim in s.compressed().items():
            assert s.compressor is not None
            shell = CompressorShell(dim, s.compressor.every, s.compressor.overlap, s.rope, s.norm, self.execution)
            own = None if cache is None else {k[len(name) + 1 :]: v for k, v in cache.items() if k.startswith(name)}
            pools[name], kept = attach(self, shell, name)(x_BLD, context, own)
            entries |= {f"{name}_{entry}": value for entry, value in kept.items()}
        index = None
        if chooser is not None:
            q_BLIE = project("BLQ,QIE->BLIE", q_BLQ, w("w_index_QIE", sizes | {"E": chooser.dim}, "Q"))
            w_BLI = project("BLD,DI->BLI", x_BLD, w("w_index_DI", sizes, "D"))
            index = rotate_last(q_BLIE, positions_BL, s.rope), w_BLI
        slots_BL = jnp.broadcast_to(context.slots_L, x_BLD.shape[:2])
        # Without a cache an entry ends at a slot of the row; in a cache entries are in the order of positions.
        places_BL = slots_BL if cache is None else positions_BL
        seen = Seen(pools["compressor"], pools.get("index"), chooser.top_k if chooser else 0) if pools else None
        sinks_KG = self.param("sinks_KG", nn.initializers.zeros, (sizes["K"], sizes["G"]), jnp.float32)
        q_BLHE = q_BLKGE.reshape(*q_BLKGE.shape[:2], s.heads, s.head_dim)
        queries = Queries(q_BLHE, slots_BL, places_BL, context.segments_BL, index)
        sinks_H = sinks_KG.astype(jnp.float32).reshape(-1)
        out_BLHE = attend_compressed(queries, held, new, seen, sinks_H, s.window, s.head_dim**-0.5)
        out_BLKGE = rotate_last(out_BLHE, -positions_BL, s.rope).reshape(q_BLKGE.shape)
        out_BLKC = jnp.einsum("BLKGE,KGEC->BLKC", out_BLKGE, w("wo_down_KGEC", sizes, "GE"))
        out_BLA = out_BLKC.reshape(*x_BLD.shape[:2], -1)
        return project("BLA,AD->BLD", out_BLA, w("wo_up_AD", sizes, "A")), entries, {}
