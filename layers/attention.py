"""Softmax attention: multi-head (Vaswani et al. 2017), multi-query (Shazeer 2019), grouped-query (Ainslie et al.
2023), windowed. How it is computed, attend.py says.

Attention sinks, a score a head that takes part in the softmax and has no value: Xiao et al. 2023, in the form of
gpt-oss (OpenAI 2025). Gated outputs: Qiu et al. 2025. Windows that do not move with the query: chunked.py.

Dimensions: B batch, L queries, M keys, S cache slots, D width, K kv_heads, G queries per kv head, E head_dim, U value
dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .attend import attend
from .cache import held_slots, new_slots
from .dense import attach, bias, project, weight
from .execution import Execution
from .norms import QKNorm
from .products import Keys, mean_keys
from .rope import LongRope, Rope, rotate
from .spec import Context, require
from .temperature import Temperature, sharpen

AXES = {
    "D": "width",
    "K": "kv_heads",
    "G": "q_per_kv",
    "E": "head_dim",
    "U": "value_dim",
    "B": "batch",
    "S": "length",
}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What becomes of the product of a query and a key before the softmax.

    scale: multiplies it, None is head_dim ** -0.5.  softcap: it becomes softcap * tanh(score / softcap).
    temperature: sharpens late queries.  sinks: each head learns the score of nothing."""

    scale: float | None = None
    softcap: float | None = None
    temperature: Temperature | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        require(self, self.softcap is None or self.softcap > 0, "softcap", "it must be positive, or None")


@dataclass(frozen=True, kw_only=True)
class Values:
    """Heads of values of `dim` dimensions, another number than keys have, times `scale` (MiMo-V2, Xiaomi 2025)."""

    dim: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(self, self.dim > 0, "dim", "it must be positive")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """`heads` query heads in groups that share `kv_heads` heads of keys and values.

    rope: None for no position information (NoPE).  window: how many tokens a query sees, itself included; None sees
    all before it. bias: which projections add one, letters of "qkvo".  values: None for such as keys.  gate: what
    attention gives is multiplied by the sigmoid of a projection of x, before the output projection."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None = None
    window: int | None = None
    qk_norm: QKNorm | None = None
    bias: str = ""
    scores: Scores = Scores()
    values: Values | None = None
    gate: bool = False

    def __post_init__(self) -> None:
        for field in ("heads", "kv_heads", "head_dim"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        divides = self.heads % self.kv_heads == 0
        require(self, divides, "heads", f"it must be a multiple of kv_heads, which is {self.kv_heads}")
        if self.rope is not None and self.rope.dim > self.head_dim:
            raise ValueError(
                f"Attention.rope.dim is {self.rope.dim}: it cannot exceed head_dim, which is {self.head_dim}"
            )
        require(self, self.window is None or self.window > 0, "window", "it must be positive, or None")
        if self.window is not None and self.rope is not None and isinstance(self.rope.scaling, LongRope):
            least = self.rope.scaling.original_length  # a ring of no more slots would not tell how long a text may be
            require(self, self.window > least, "window", f"beside LongRope it must exceed original_length, {least}")
        require(self, set(self.bias) <= set("qkvo"), "bias", "it takes letters of 'qkvo'")

    def shell(self, execution: Execution) -> nn.Module:
        return AttentionShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        slots = length if self.window is None else min(self.window, length)
        # Heads first: the products of decoding then read them as they lie.
        entry = jax.ShapeDtypeStruct((batch, self.kv_heads, slots, self.head_dim), dtype)
        if self.values is None:
            return {"k_BKSE": entry, "v_BKSE": entry}
        return {"k_BKSE": entry, "v_BKSU": jax.ShapeDtypeStruct((*entry.shape[:3], self.values.dim), dtype)}

    def flops(self, length: int) -> float:
        dims = self.head_dim + (self.head_dim if self.values is None else self.values.dim)
        return 2 * self.heads * dims * self.mean_keys(length)

    def mean_keys(self, length: int) -> float:
        return mean_keys(length, self.window)

    def parts(self, positions_BL: jax.Array, segments_BL: jax.Array | None) -> jax.Array | None:
        """The part of its row that a token is in: a query sees keys of its own. None if a row is one part."""
        return segments_BL


# --- the shell -------------------------------------------------------------------------------------------------------


class AttentionShell(nn.Module):
    spec: Attention
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "K": s.kv_heads, "G": s.heads // s.kv_heads, "E": s.head_dim}
        sizes["U"] = s.head_dim if s.values is None else s.values.dim
        v_axis = "E" if s.values is None else "U"  # a value's own dimensions have a letter only where they differ
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        b = partial(bias, self, sizes=sizes, execution=self.execution)
        q_BLKGE = project("BLD,DKGE->BLKGE", x_BLD, w("wq_DKGE", inputs="D"))
        k_BLKE = project("BLD,DKE->BLKE", x_BLD, w("wk_DKE", inputs="D"))
        v_BLKU = project("BLD,DKU->BLKU", x_BLD, w(f"wv_DK{v_axis}", inputs="D"))
        q_BLKGE = q_BLKGE + b("bq_KGE") if "q" in s.bias else q_BLKGE
        k_BLKE = k_BLKE + b("bk_KE") if "k" in s.bias else k_BLKE
        v_BLKU = v_BLKU + b(f"bv_K{v_axis}") if "v" in s.bias else v_BLKU
        v_BLKU = v_BLKU if s.values is None else v_BLKU * s.values.scale
        if s.qk_norm is not None and not s.qk_norm.after_rope:
            q_BLKGE = attach(self, s.qk_norm.shell(self.execution, "KGE"), "q_norm")(q_BLKGE)
            k_BLKE = attach(self, s.qk_norm.shell(self.execution, "KE"), "k_norm")(k_BLKE)
        if s.rope is not None:
            q_BLKGE = rotate(q_BLKGE, context.positions_BL, s.rope, context.room)
            k_BLKE = rotate(k_BLKE, context.positions_BL, s.rope, context.room)
        if s.qk_norm is not None and s.qk_norm.after_rope:
            q_BLKGE = attach(self, s.qk_norm.shell(self.execution, "KGE"), "q_norm")(q_BLKGE)
            k_BLKE = attach(self, s.qk_norm.shell(self.execution, "KE"), "k_norm")(k_BLKE)
        if s.scores.temperature is not None:
            q_BLKGE = sharpen(q_BLKGE, context.positions_BL, s.scores.temperature)

        segments_BL = s.parts(context.positions_BL, context.segments_BL)
        keys = [Keys(k_BLKE, v_BLKU, new_slots(context), segments_BL)]
        if cache is not None:
            entries = cache["k_BKSE"], cache[f"v_BKS{v_axis}"]
            k_BSKE, v_BSKU = (jnp.swapaxes(entry, 1, 2).astype(q_BLKGE.dtype) for entry in entries)
            held_BS, pad_B = held_slots(context, k_BSKE.shape[1]), context.pad_B
            held_parts_BS = None if pad_B is None else s.parts(held_BS - pad_B[:, None], None)
            keys.insert(0, Keys(k_BSKE, v_BSKU, held_BS, held_parts_BS))
        sinks_KG = None
        if s.scores.sinks:
            shape = sizes["K"], sizes["G"]
            sinks_KG = self.param("sinks_KG", nn.initializers.zeros, shape, jnp.float32).astype(jnp.float32)
        out_BLKGU = attend(
            q_BLKGE,
            keys,
            context.slots_L,
            segments_BL,
            scale=s.head_dim**-0.5 if s.scores.scale is None else s.scores.scale,
            window=s.window,
            softcap=s.scores.softcap,
            sinks_KG=sinks_KG,
            execution=self.execution,
        )
        if s.gate:
            gate_BLKGU = project("BLD,DKGU->BLKGU", x_BLD, w(f"wg_DKG{v_axis}", inputs="D"))
            out_BLKGU = out_BLKGU * jax.nn.sigmoid(gate_BLKGU)
        y_BLD = project("BLKGU,KGUD->BLD", out_BLKGU, w(f"wo_KG{v_axis}D", inputs=f"KG{v_axis}"))
        y_BLD = y_BLD + b("bo_D") if "o" in s.bias else y_BLD
        kept = slice(None) if s.window is None else slice(-s.window, None)
        new_entries = {"k_BKSE": k_BLKE, f"v_BKS{v_axis}": v_BLKU}
        new_entries = {name: jnp.swapaxes(entry[:, kept], 1, 2) for name, entry in new_entries.items()}
        return y_BLD, new_entries, {}
