"""Multi-head latent attention (MLA): DeepSeek-V2 (2024) section 2.1, DeepSeek-V3 (2024) eqs. 1-11.

Keys and values of all heads are read out of one small latent a token, beside one rotated key that all heads share;
only these are cached. Training and prefill expand the latent into keys and values. Decoding absorbs the read-out into
query and output instead: attention is then multi-query over the latents, and the expanded keys and values of the past
are never made. With an indexer (indexer.py) a query sees only the tokens that it chooses, again over their latents.

Dimensions: B batch, L length, S cache slots, D width, H heads, Q query latent, C key-value latent, N unrotated and R
rotated dimensions of a query or key, P = N + R, V value dimensions, T = C + R, what is cached of a token, E dimensions
of an index key."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ..sharding.rules import Rules, parts
from .attend import attend
from .cache import held_slots, new_slots
from .corrected import CorrectedNorm
from .dense import attach, project, weight
from .execution import Execution
from .indexer import Borrowed, Candidates, Choice, Indexer, Query, attend_chosen, choose
from .norms import RMSNorm
from .products import Keys, Queries, Rule, mean_keys
from .ring import Held, around
from .rope import Rope, Yarn, rotate
from .spec import Context, require
from .spread import is_spread, line, spread, to_heads
from .temperature import Temperature, sharpen

AXES = {
    "D": "width",
    "H": "heads",
    "Q": "q_rank",
    "C": "kv_rank",
    "P": "head_dim",
    "N": "nope_dim",
    "R": "head_dim",
    "V": "value_dim",
    "T": "latent_dim",
    "E": "head_dim",
    "B": "batch",
    "S": "length",
}

CHOICE = "choice"
"""The name under which layers find what an earlier one chose."""


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """`heads` heads with `nope_dim` unrotated and `rope.dim` rotated query dimensions and `value_dim` value
    dimensions each.

    kv_rank: width of the key-value latent.  q_rank: width of the query latent, None for queries straight from the
    residual. norm: of both latents. A YaRN rope with mscale_all_dim scales the scores by its square.
    indexer: chooses what a query sees among more than its top_k tokens; None for all of them.
    temperature: sharpens late queries."""

    heads: int
    nope_dim: int
    value_dim: int
    kv_rank: int
    rope: Rope
    q_rank: int | None = None
    norm: RMSNorm | CorrectedNorm = RMSNorm()
    indexer: Indexer | Borrowed | None = None
    temperature: Temperature | None = None

    def __post_init__(self) -> None:
        for field in ("heads", "nope_dim", "value_dim", "kv_rank"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        require(self, self.q_rank is None or self.q_rank > 0, "q_rank", "it must be positive, or None")
        require(self, self.indexer is None or self.q_rank is not None, "q_rank", "an indexer reads the query latent")

    @property
    def scale(self) -> float:
        """What multiplies the scores."""
        plain = float((self.nope_dim + self.rope.dim) ** -0.5)
        yarn = self.rope.scaling
        stretched = isinstance(yarn, Yarn) and yarn.mscale_all_dim
        return plain * yarn.magnitude(yarn.mscale_all_dim) ** 2 if stretched else plain  # type: ignore[union-attr,arg-type]

    @property
    def lends(self) -> str:
        """What it hands to later layers."""
        return CHOICE if isinstance(self.indexer, Indexer) and self.indexer.lends else ""

    def shell(self, execution: Execution) -> nn.Module:
        return LatentAttentionShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        entries = {"latent_BST": jax.ShapeDtypeStruct((batch, length, self.kv_rank + self.rope.dim), dtype)}
        if isinstance(self.indexer, Indexer):
            entries["index_BSE"] = jax.ShapeDtypeStruct((batch, length, self.indexer.dim), dtype)
        return entries

    def flops(self, length: int) -> float:
        if self.indexer is None or length <= self.indexer.top_k:
            return 2 * self.heads * (self.nope_dim + self.rope.dim + self.value_dim) * mean_keys(length, None)
        # Sparse attention is over latents: what they are read out with is counted with the weights.
        chosen = mean_keys(length, self.indexer.top_k)
        return 2 * self.heads * (2 * self.kv_rank + self.rope.dim) * chosen + self.indexer.flops(length)


def expanded(
    q_BLHP: jax.Array,
    latent_BLT: jax.Array,
    wk_CHN: jax.Array,
    wv_CHV: jax.Array,
    slots_BL: jax.Array,
    context: Context,
    scale: float,
    execution: Execution | None = None,
) -> jax.Array:
    """Attention among the new tokens with keys and values read out of their latents: [B, L, H, V]."""
    q_BLHGP, weights = q_BLHP[:, :, :, None], (wk_CHN, wv_CHV)
    rules = None if execution is None else execution.rules
    if rules is not None and execution is not None and _travels(latent_BLT, weights, rules):
        return _around(q_BLHGP, latent_BLT, weights, slots_BL, context, scale, rules, execution.target)[:, :, :, 0]
    keys = Keys(*read_out((latent_BLT,), weights), slots_BL, context.segments_BL)
    out = attend(q_BLHGP, [keys], context.slots_L, context.segments_BL, scale=scale, execution=execution)
    return out[:, :, :, 0]


def read_out(latents: tuple[jax.Array, ...], weights: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """Keys [B, L, H, P] and values [B, L, H, V] of the one latent [B, L, T], by (wk_CHN, wv_CHV)."""
    (latent_BLT,), (wk_CHN, wv_CHV) = latents, weights
    rank = wk_CHN.shape[0]
    c_BLC, rotated_BLR = latent_BLT[..., :rank], latent_BLT[..., rank:]
    nope_BLHN = project("BLC,CHN->BLHN", c_BLC, wk_CHN)
    shared_BLHR = jnp.broadcast_to(rotated_BLR[:, :, None], (*nope_BLHN.shape[:3], rotated_BLR.shape[-1]))
    return jnp.concatenate([nope_BLHN, shared_BLHR], axis=-1), project("BLC,CHV->BLHV", c_BLC, wv_CHV)


def _travels(latent_BLT: jax.Array, weights: tuple[jax.Array, ...], rules: Rules) -> bool:
    """Whether devices share the sequence, and a latent is less than the keys and values that one of them reads of
    it.
    """
    shared = line(rules, latent_BLT.shape[1]) if is_spread(rules) else None
    if shared is None:
        return False
    wk_CHN, wv_CHV = weights
    sizes: Any = dict(jax.sharding.get_abstract_mesh().shape)
    devices, heads = parts(rules, "heads", sizes), wk_CHN.shape[1]
    rotated = latent_BLT.shape[-1] - wk_CHN.shape[0]
    own = heads if heads % devices else heads // devices
    less = latent_BLT.shape[-1] <= own * (wk_CHN.shape[-1] + rotated + wv_CHV.shape[-1])
    return less and not to_heads(rules, shared, own)


def _around(
    q_BLHGP: jax.Array,
    latent_BLT: jax.Array,
    weights: tuple[jax.Array, ...],
    slots_BL: jax.Array,
    context: Context,
    scale: float,
    rules: Rules,
    target: str,
) -> jax.Array:
    """`expanded` among devices that share the sequence: latents travel, and are read out where they come."""
    shared, at = line(rules, latent_BLT.shape[1]), latent_BLT.shape[:2]
    assert shared is not None

    def own(q: Any, slots: Any, key_slots: Any, segments: Any, latent: Any, *weights: Any) -> jax.Array:
        queries, held = Queries(q, slots, segments), Held((latent,), key_slots, segments)
        return around(queries, held, shared, Rule(scale), read_out, weights, target=target)

    slots = jnp.broadcast_to(context.slots_L, at), jnp.broadcast_to(slots_BL, at)
    row, heads = ("batch", "length"), (None, "heads")
    axes = ((*row, "heads"), row, row, row, row, heads, heads)
    return spread(own, rules, (q_BLHGP, *slots, context.segments_BL, latent_BLT, *weights), axes, axes[0])


def absorbed(
    q_BLHP: jax.Array,
    parts: list[tuple[jax.Array, jax.Array]],
    wk_CHN: jax.Array,
    wv_CHV: jax.Array,
    slots_L: jax.Array,
    scale: float,
) -> jax.Array:
    """The same attention over latents, `parts` of (latent_BMT, slots_BM): one key-value head, whose values are its
    keys: [B, L, H, V].
    """
    rank = wk_CHN.shape[0]
    q_BLHT = absorbed_query(q_BLHP, wk_CHN)
    keys = [Keys(latent[:, :, None], latent[:, :, None], slots) for latent, slots in parts]
    out_BLHT = attend(q_BLHT[:, :, None], keys, slots_L, scale=scale)[:, :, 0]
    return jnp.einsum("BLHC,CHV->BLHV", out_BLHT[..., :rank], wv_CHV)


def absorbed_query(q_BLHP: jax.Array, wk_CHN: jax.Array) -> jax.Array:
    """The query for latents [B, L, H, T]: its unrotated part has taken in the read-out of keys."""
    nope = wk_CHN.shape[-1]
    into_BLHC = jnp.einsum("BLHN,CHN->BLHC", q_BLHP[..., :nope], wk_CHN)
    return jnp.concatenate([into_BLHC, q_BLHP[..., nope:]], axis=-1)


def lent(context: Context) -> Choice:
    """What an earlier layer chose."""
    if CHOICE not in (context.lent or {}):
        raise ValueError("LatentAttention.indexer is Borrowed: no earlier layer has an indexer that lends its choice")
    choice: Choice = context.lent[CHOICE]
    return choice


class LatentAttentionShell(nn.Module):
    spec: LatentAttention
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "H": s.heads, "C": s.kv_rank, "R": s.rope.dim, "N": s.nope_dim, "V": s.value_dim}
        sizes |= {"P": s.nope_dim + s.rope.dim, "Q": s.q_rank or 0, "T": s.kv_rank + s.rope.dim}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        if s.q_rank is None:
            q_BLHP = project("BLD,DHP->BLHP", x_BLD, w("wq_DHP", inputs="D"))
        else:
            q_BLQ = project("BLD,DQ->BLQ", x_BLD, w("wq_down_DQ", inputs="D"))
            q_BLQ = attach(self, s.norm.shell(self.execution, "Q"), "q_norm")(q_BLQ)
            q_BLHP = project("BLQ,QHP->BLHP", q_BLQ, w("wq_up_QHP", inputs="Q"))
        rotated_BLHR = rotate(q_BLHP[..., s.nope_dim :], context.positions_BL, s.rope, context.room)
        q_BLHP = jnp.concatenate([q_BLHP[..., : s.nope_dim], rotated_BLHR], axis=-1)
        q_BLHP = q_BLHP if s.temperature is None else sharpen(q_BLHP, context.positions_BL, s.temperature)

        latent_BLT = project("BLD,DT->BLT", x_BLD, w("wkv_down_DT", inputs="D"))
        c_BLC = attach(self, s.norm.shell(self.execution, "C"), "kv_norm")(latent_BLT[..., : s.kv_rank])
        rotated_BLR = rotate(latent_BLT[..., s.kv_rank :], context.positions_BL, s.rope, context.room)
        latent_BLT = jnp.concatenate([c_BLC, rotated_BLR], axis=-1)

        wk_CHN, wv_CHV = w("wk_CHN", inputs="C"), w("wv_CHV", inputs="C")
        slots_BL = new_slots(context)
        entries: dict[str, Any] = {"latent_BST": latent_BLT}
        latents, slots = [latent_BLT], [slots_BL]
        if cache is not None:
            latents.insert(0, cache["latent_BST"].astype(x_BLD.dtype))
            slots.insert(0, held_slots(context, latents[0].shape[1]))
        choice: Choice | None = None
        sees_all = s.indexer is None or sum(latent.shape[1] for latent in latents) <= s.indexer.top_k
        if isinstance(s.indexer, Indexer):
            index = attach(self, s.indexer.shell(self.execution), "indexer")(x_BLD, q_BLQ, context)
            entries["index_BSE"] = index.k_BLE
            if not sees_all:
                at_BL = jnp.broadcast_to(context.slots_L, x_BLD.shape[:2])
                query = Query(index.q_BLIE, index.w_BLI, at_BL, context.segments_BL)
                among = [Candidates(index.k_BLE, slots_BL, context.segments_BL)]
                if cache is not None:
                    among.insert(0, Candidates(cache["index_BSE"].astype(x_BLD.dtype), slots[0]))
                choice = choose(query, among, s.indexer.top_k)
                entries |= {"lent": {CHOICE: choice}} if s.indexer.lends else {}
        elif not sees_all:
            choice = lent(context)
        if choice is not None:
            q_BLHT = absorbed_query(q_BLHP, wk_CHN)
            out_BLHC = attend_chosen(q_BLHT, latents, choice, s.kv_rank, s.scale)
            out_BLHV = jnp.einsum("BLHC,CHV->BLHV", out_BLHC, wv_CHV)
        elif cache is None:
            out_BLHV = expanded(q_BLHP, latent_BLT, wk_CHN, wv_CHV, slots_BL, context, s.scale, self.execution)
        else:
            parts = list(zip(latents, slots, strict=True))
            out_BLHV = absorbed(q_BLHP, parts, wk_CHN, wv_CHV, context.slots_L, s.scale)
        y_BLD = project("BLHV,HVD->BLD", out_BLHV, w("wo_HVD", inputs="HV"))
        return y_BLD, entries, {}
