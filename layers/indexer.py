"""The lightning indexer: which tokens a query of latent attention sees. DeepSeek-V3.2 (DeepSeek-AI 2025,
arXiv 2512.02556), section 2.1, eqs. 1 and 2:

    I[t, s] = sum over j of w[t, j] relu(q[t, j] . k[s]),    S[t] = the s <= t with the top_k largest I[t, s]

Its heads are small and share one key a token, so that a query scores all tokens for little and attends to few. The
choice has no gradient: the indexer learns by a loss of its own. Positive factors of I are left out, as they choose
nothing. Neighbouring layers choose much the same, so that some do without an indexer and take over what an earlier
layer chose (IndexCache 2026, arXiv 2603.12201).

Dimensions: B batch, L queries, M keys, J chosen keys, D width, Q query latent, I indexer heads, E dimensions of one, H
attention heads, T latent, C value part of a latent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from .dense import attach, project, weight
from .execution import Execution
from .norms import LayerNorm
from .products import HIDDEN
from .rope import Rope, rotate
from .spec import Context, require

AXES = {"D": "width", "Q": "q_rank", "I": "heads", "E": "head_dim", "B": "batch", "S": "length"}

QUERY_BLOCK = 16
"""Queries at a time: each gathers latents of its own, and scores every token with every head."""


@dataclass(frozen=True, kw_only=True)
class Indexer:
    """`heads` heads of `dim` dimensions choose the `top_k` tokens that a query attends to.

    norm: of its key.  lends: layers after it may take over its choice.
    """

    heads: int
    dim: int
    top_k: int
    rope: Rope
    lends: bool = False
    norm: LayerNorm = LayerNorm(eps=1e-6)

    def __post_init__(self) -> None:
        for field in ("heads", "dim", "top_k"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        if self.rope.dim > self.dim:
            raise ValueError(f"Indexer.rope.dim is {self.rope.dim}: it cannot exceed dim, which is {self.dim}")

    def shell(self, execution: Execution) -> nn.Module:
        return IndexerShell(self, execution)

    def flops(self, length: int) -> float:
        """Scores against all tokens before, a mean over positions."""
        return 2 * self.heads * (self.dim + 1) * (length + 1) / 2


@dataclass(frozen=True, kw_only=True)
class Borrowed:
    """The `top_k` tokens that the nearest earlier layer chose whose indexer lends."""

    top_k: int

    def __post_init__(self) -> None:
        require(self, self.top_k > 0, "top_k", "it must be positive")

    def flops(self, length: int) -> float:
        return 0.0


class Index(NamedTuple):
    """Queries, the weights of their heads, and the keys of the same tokens."""

    q_BLIE: jax.Array
    w_BLI: jax.Array
    k_BLE: jax.Array


class Candidates(NamedTuple):
    """Tokens to choose from: keys, place in the row (-1 for nothing there), packed document or None."""

    k_BME: jax.Array
    slots_BM: jax.Array
    segments_BM: jax.Array | None = None


class Query(NamedTuple):
    """Who chooses: queries, the weights of their heads, and where they are."""

    q_BLIE: jax.Array
    w_BLI: jax.Array
    slots_BL: jax.Array
    segments_BL: jax.Array | None


class Choice(NamedTuple):
    """The tokens that each query sees, counted through the candidates, and whether there is one."""

    token_BLJ: jax.Array
    is_BLJ: jax.Array


def scores(query: Query, among: Candidates) -> jax.Array:
    """I of every candidate [B, L, M], float32, HIDDEN where the query must not see it."""
    each_BLIM = jnp.einsum("BLIE,BME->BLIM", query.q_BLIE, among.k_BME, preferred_element_type=jnp.float32)
    score_BLM = jnp.einsum("BLI,BLIM->BLM", query.w_BLI.astype(jnp.float32), jax.nn.relu(each_BLIM))
    slots_BLM = among.slots_BM[:, None]
    seen_BLM = (slots_BLM >= 0) & (slots_BLM <= query.slots_BL[..., None])
    if query.segments_BL is not None and among.segments_BM is not None:
        seen_BLM &= query.segments_BL[..., None] == among.segments_BM[:, None]
    return jnp.where(seen_BLM, score_BLM, HIDDEN)


def choose(query: Query, candidates: list[Candidates], top_k: int) -> Choice:
    """The top_k best of all candidates, of which there are more, for each query."""

    def block(query: Query) -> Choice:
        score_BLM = jnp.concatenate([scores(query, among) for among in candidates], axis=-1)
        best_BLJ, token_BLJ = jax.lax.top_k(score_BLM, top_k)
        return Choice(token_BLJ, best_BLJ > HIDDEN)

    choice: Choice = _in_blocks(block, jax.lax.stop_gradient(query))
    return choice


def taken(latents: list[jax.Array], chosen_BLJ: jax.Array) -> jax.Array:
    """The chosen latents [B, L, J, T]; those of a cache and the new ones are not joined."""
    taken_BLJT: jax.Array | None = None
    start = 0
    for latent_BMT in latents:
        size = latent_BMT.shape[1]
        own_BLJ = jnp.clip(chosen_BLJ - start, 0, size - 1)
        here_BLJT = jax.vmap(lambda latent_MT, own_LJ: latent_MT[own_LJ])(latent_BMT, own_BLJ)
        after_BLJ1 = (chosen_BLJ >= start)[..., None]
        taken_BLJT = here_BLJT if taken_BLJT is None else jnp.where(after_BLJ1, here_BLJT, taken_BLJT)
        start += size
    assert taken_BLJT is not None
    return taken_BLJT


def attend_chosen(q_BLHT: jax.Array, latents: list[jax.Array], choice: Choice, rank: int, scale: float) -> jax.Array:
    """Each query over its chosen latents: [B, L, H, C] of their first `rank` dimensions; softmax in float32."""

    def block(given: tuple[jax.Array, Choice]) -> Any:
        q_BLHT, choice = given
        latent_BLJT = taken(latents, choice.token_BLJ)
        s_BLHJ = jnp.einsum("BLHT,BLJT->BLHJ", q_BLHT, latent_BLJT, preferred_element_type=jnp.float32) * scale
        weights_BLHJ = jax.nn.softmax(jnp.where(choice.is_BLJ[:, :, None], s_BLHJ, HIDDEN), axis=-1)
        return jnp.einsum("BLHJ,BLJC->BLHC", weights_BLHJ.astype(latent_BLJT.dtype), latent_BLJT[..., :rank])

    out_BLHC: jax.Array = _in_blocks(block, (q_BLHT, choice))
    return out_BLHC


def _in_blocks(function: Callable[[Any], Any], queries: Any) -> Any:
    """A function of arrays [B, L, ...], a few queries at a time: neither all scores nor all gathered latents exist at
    once.
    """
    batch, length = jax.tree.leaves(queries)[0].shape[:2]
    if length <= QUERY_BLOCK:
        return function(queries)
    count = -(-length // QUERY_BLOCK)

    def cut(x_BL: jax.Array) -> jax.Array:  # [B, L, ...] -> [count, B, QUERY_BLOCK, ...]
        widths = [(0, 0), (0, count * QUERY_BLOCK - length)] + [(0, 0)] * (x_BL.ndim - 2)
        return jnp.moveaxis(jnp.pad(x_BL, widths).reshape(batch, count, QUERY_BLOCK, *x_BL.shape[2:]), 1, 0)

    def joined(out: jax.Array) -> jax.Array:
        return jnp.moveaxis(out, 0, 1).reshape(batch, count * QUERY_BLOCK, *out.shape[3:])[:, :length]

    return jax.tree.map(joined, jax.lax.map(jax.checkpoint(function), jax.tree.map(cut, queries)))


class IndexerShell(nn.Module):
    spec: Indexer
    execution: Execution

    @nn.compact
    def __call__(self, x_BLD: jax.Array, q_BLQ: jax.Array, context: Context) -> Index:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "Q": q_BLQ.shape[-1], "I": s.heads, "E": s.dim}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        q_BLIE = project("BLQ,QIE->BLIE", q_BLQ, w("wq_QIE", inputs="Q"))
        k_BLE = project("BLD,DE->BLE", x_BLD, w("wk_DE", inputs="D"))
        k_BLE = attach(self, s.norm.shell(self.execution, "E"), "k_norm")(k_BLE)
        w_BLI = project("BLD,DI->BLI", x_BLD, w("weights_DI", inputs="D"))
        positions_BL = context.positions_BL
        return Index(rotate(q_BLIE, positions_BL, s.rope), w_BLI, rotate(k_BLE, positions_BL, s.rope))
