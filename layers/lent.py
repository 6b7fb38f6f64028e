"""Attention of Gemma 4 (Google DeepMind 2026): queries and keys normalised with a learned scale, values without one, so
that scores need no factor; keys that serve as values; and layers that have no keys and values of their own but borrow
those of an earlier one (cross-layer attention: Brandon et al. 2024, section 2; YOCO: Sun et al. 2024).

A layer that lends hands all it attends to, what its cache holds and the new tokens, to the layers after it. One that
borrows keeps nothing.

Dimensions: B batch, L queries, M keys, S cache slots, D width, K kv_heads, G queries per kv head, E head_dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .attend import attend
from .cache import held_slots, new_slots
from .dense import attach, project, weight
from .execution import Execution
from .norms import RMSNorm, rms_norm
from .products import Keys, mean_keys
from .rope import Rope, rotate
from .spec import Context, require

AXES = {"D": "width", "K": "kv_heads", "G": "q_per_kv", "E": "head_dim", "B": "batch", "S": "length"}


@dataclass(frozen=True, kw_only=True)
class NormedAttention:
    """`heads` query heads in groups that share `kv_heads` heads of keys and values, all of them normalised per head.

    window: how many tokens a query sees, itself included; None sees all before it.  shared_value: a value is its key
    before norm and rope.  lends: under which name later layers find its keys and values; empty for none to.
    borrows: under which name it finds those of an earlier layer instead of having its own."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    norm: RMSNorm = RMSNorm()
    window: int | None = None
    shared_value: bool = False
    lends: str = ""
    borrows: str = ""

    def __post_init__(self) -> None:
        for field in ("heads", "kv_heads", "head_dim"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        divides = self.heads % self.kv_heads == 0
        require(self, divides, "heads", f"it must be a multiple of kv_heads, which is {self.kv_heads}")
        require(self, self.window is None or self.window > 0, "window", "it must be positive, or None")
        require(self, not (self.lends and self.borrows), "lends", "a layer that borrows has nothing to lend")

    def shell(self, execution: Execution) -> nn.Module:
        return NormedAttentionShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        if self.borrows:
            return {}
        slots = length if self.window is None else min(self.window, length)
        entry = jax.ShapeDtypeStruct((batch, self.kv_heads, slots, self.head_dim), dtype)
        return {"k_BKSE": entry, "v_BKSE": entry}

    def flops(self, length: int) -> float:
        return 4 * self.heads * self.head_dim * mean_keys(length, self.window)


class NormedAttentionShell(nn.Module):
    spec: NormedAttention
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, Any], dict[str, jax.Array]]:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "K": s.kv_heads, "G": s.heads // s.kv_heads, "E": s.head_dim}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        norm = s.norm.shell(self.execution, "E")
        q_BLKGE = attach(self, norm, "q_norm")(project("BLD,DKGE->BLKGE", x_BLD, w("wq_DKGE", inputs="D")))
        q_BLKGE = rotate(q_BLKGE, context.positions_BL, s.rope, context.room)
        entries: dict[str, Any] = {}
        if s.borrows:
            keys = borrowed(context, s.borrows)
        else:
            raw_BLKE = project("BLD,DKE->BLKE", x_BLD, w("wk_DKE", inputs="D"))
            v_BLKE = raw_BLKE if s.shared_value else project("BLD,DKE->BLKE", x_BLD, w("wv_DKE", inputs="D"))
            k_BLKE = rotate(attach(self, norm, "k_norm")(raw_BLKE), context.positions_BL, s.rope, context.room)
            v_BLKE = rms_norm(v_BLKE, None, s.norm.eps)
            keys = [Keys(k_BLKE, v_BLKE, new_slots(context), context.segments_BL)]
            kept = slice(None) if s.window is None else slice(-s.window, None)
            entries = {"k_BKSE": jnp.swapaxes(k_BLKE[:, kept], 1, 2), "v_BKSE": jnp.swapaxes(v_BLKE[:, kept], 1, 2)}
            if cache is not None:
                k_BSKE, v_BSKE = (jnp.swapaxes(cache[name], 1, 2).astype(q_BLKGE.dtype) for name in entries)
                keys.insert(0, Keys(k_BSKE, v_BSKE, held_slots(context, k_BSKE.shape[1])))
            entries |= {"lent": {s.lends: keys}} if s.lends else {}
        out_BLKGE = attend(
            q_BLKGE,
            keys,
            context.slots_L,
            context.segments_BL,
            scale=1.0,
            window=s.window,
            execution=self.execution,
        )
        return project("BLKGE,KGED->BLD", out_BLKGE, w("wo_KGED", inputs="KGE")), entries, {}


def borrowed(context: Context, name: str) -> list[Keys]:
    if name not in (context.lent or {}):
        raise ValueError(f"NormedAttention.borrows is {name!r}: no earlier layer lends keys and values of that name")
    keys: list[Keys] = context.lent[name]
    return keys
