"""Mamba-2: a state-space layer, which is linear attention with a decay a head.

Dao & Gu 2024, "Transformers are SSMs", sections 6 and 7; in Nemotron-H (NVIDIA 2025). With a step d_t > 0 a token,

    S_t = exp(-r d_t) S_{t-1} + k_t (d_t v_t)^T,    o_t = q_t^T S_t + skip v_t

where k and q are that paper's B and C, v its x, r = exp(A_log). The output is gated by silu, then normalised a group of
heads at a time.

Dimensions: B batch, L length, D width, K groups, G heads of a group, E state dimensions, U dimensions of a head, T taps
of the convolution, N chunks, C tokens of a chunk as queries and M as keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from .chunks import decayed, decays, fold, unfold
from .convolution import convolve
from .delta import log_rate, time_bias
from .dense import bias, project, weight
from .execution import Execution
from .norms import rms_norm
from .relay import relayed
from .spec import Context, require

AXES = {
    "D": "width",
    "K": "kv_heads",
    "G": "q_per_kv",
    "E": "head_dim",
    "U": "value_dim",
    "T": "taps",
    "B": "batch",
}

CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class Mamba2:
    """`heads` memories of [state_dim, head_dim], in `groups` that share their queries and keys.

    taps: of the convolution of queries, keys and values, which adds a bias where conv_bias says so.
    least_step: no step is smaller.  bias: of the projections in and out.  eps: of the norm of the output."""

    heads: int
    head_dim: int
    groups: int
    state_dim: int
    taps: int = 4
    least_step: float = 0.0
    conv_bias: bool = True
    bias: bool = False
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in ("heads", "head_dim", "groups", "state_dim", "eps"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        divides = self.heads % self.groups == 0
        require(self, divides, "heads", f"it must be a multiple of groups, which is {self.groups}")
        require(self, self.taps > 1, "taps", "it must be at least 2")
        require(self, self.least_step >= 0, "least_step", "it must not be negative")

    def shell(self, execution: Execution) -> nn.Module:
        return Mamba2Shell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        before, heads = self.taps - 1, (self.groups, self.heads // self.groups)
        entry = jax.ShapeDtypeStruct((batch, before, self.groups, self.state_dim), dtype)
        values = jax.ShapeDtypeStruct((batch, before, *heads, self.head_dim), dtype)
        # The memory sums over all tokens: it is float32 whatever the rest is.
        memory = jax.ShapeDtypeStruct((batch, *heads, self.state_dim, self.head_dim), jnp.float32)
        return {"q_BTKE": entry, "k_BTKE": entry, "v_BTKGU": values, "memory_BKGEU": memory}

    def flops(self, length: int) -> float:
        """Of the recurrence: write and read; and of the convolution."""
        channels = 2 * self.groups * self.state_dim + self.heads * self.head_dim
        return 4 * self.heads * self.state_dim * self.head_dim + 2 * self.taps * channels


class Tokens(NamedTuple):
    """float32; v: times its step.  decay: log of what is kept of the memory before a token, of a last axis of 1."""

    q_BLKE: jax.Array
    k_BLKE: jax.Array
    v_BLKGU: jax.Array
    decay_BLKG1: jax.Array


def remember(tokens: Tokens, context: Context, memory_BKGEU: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """What every token reads [B, L, K, G, U], and the memory after the last; memory_BKGEU: before the first, None for
    an empty one. Padding leaves it untouched, and a packed document starts from an empty one."""
    batch, length, keys, group, values = tokens.v_BLKGU.shape
    real_BLKGU = context.real_BL()[:, :, None, None, None]
    tokens = tokens._replace(
        v_BLKGU=jnp.where(real_BLKGU, tokens.v_BLKGU, 0), decay_BLKG1=jnp.where(real_BLKGU, tokens.decay_BLKG1, 0)
    )
    if memory_BKGEU is None:
        memory_BKGEU = jnp.zeros((batch, keys, group, tokens.k_BLKE.shape[-1], values), jnp.float32)
    if length == 1:
        q_BKE, k_BKE, v_BKGU, decay_BKG1 = (x[:, 0] for x in tokens)
        memory_BKGEU = jnp.exp(decay_BKG1)[..., None] * memory_BKGEU + jnp.einsum("BKE,BKGU->BKGEU", k_BKE, v_BKGU)
        return jnp.einsum("BKE,BKGEU->BKGU", q_BKE, memory_BKGEU)[:, None], memory_BKGEU
    return in_chunks(tokens, memory_BKGEU, context.segments_BL)


def in_chunks(
    tokens: Tokens, memory_BKGEU: jax.Array, segments_BL: jax.Array | None, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """The same for many tokens, in products: a scan over chunks carries the memory, all else is parallel."""
    length = tokens.v_BLKGU.shape[1]
    chunk = min(chunk, 1 << (length - 1).bit_length())
    q_NBKCE, k_NBKCE, v_NBKGCU = (fold(x, chunk) for x in tokens[:3])
    kept_NBKGC1, seen_NBCM, into_NBKGC1, left_NBKGC1 = decays(tokens.decay_BLKG1, segments_BL, chunk)
    own_NBKGCU = decayed(q_NBKCE, k_NBKCE, kept_NBKGC1, seen_NBCM) @ v_NBKGCU
    written_NBKGEU = jnp.einsum("NBKCE,NBKGCU->NBKGEU", k_NBKCE, left_NBKGC1 * v_NBKGCU)

    def step(memory_BKGEU: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        written_BKGEU, keep_BKG11 = part
        return keep_BKG11 * memory_BKGEU + written_BKGEU, memory_BKGEU

    parts = written_NBKGEU, into_NBKGC1[..., -1, :, None]
    memory_BKGEU, before_NBKGEU = jax.lax.scan(step, memory_BKGEU, parts)
    read_NBKGCU = jnp.einsum("NBKCE,NBKGEU->NBKGCU", q_NBKCE, before_NBKGEU) * into_NBKGC1
    return unfold(own_NBKGCU + read_NBKGCU, length), memory_BKGEU


class Mamba2Shell(nn.Module):
    spec: Mamba2
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "K": s.groups, "G": s.heads // s.groups, "T": s.taps}
        sizes |= {"E": s.state_dim, "U": s.head_dim}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        b = partial(bias, self, sizes=sizes, execution=self.execution)

        def projected(name: str, axes: str) -> jax.Array:
            y = project(f"BLD,D{axes}->BL{axes}", x_BLD, w(f"w_{name}_D{axes}", inputs="D"))
            return y + b(f"b_{name}_{axes}") if s.bias else y

        def mixed(name: str, axes: str) -> tuple[jax.Array, jax.Array]:
            held = None if cache is None else cache[f"{name}_BT{axes}"]
            channels, rules = [AXES[letter] if letter in "KG" else None for letter in axes], self.execution.rules
            kernel = w(f"conv_{name}_{axes}T", inputs="T")
            y, new = convolve(projected(name, axes), kernel, context, held, rules, channels)
            y = y + b(f"b_conv_{name}_{axes}") if s.conv_bias else y
            return jax.nn.silu(y).astype(jnp.float32), new

        gate_BLKGU = projected("gate", "KGU").astype(jnp.float32)
        (v_BLKGU, v_BTKGU), (k_BLKE, k_BTKE), (q_BLKE, q_BTKE) = mixed("v", "KGU"), mixed("k", "KE"), mixed("q", "KE")
        shape = (sizes["K"], sizes["G"])
        forget_KG = jnp.exp(self.param("log_forget_KG", log_rate, shape, jnp.float32).astype(jnp.float32))
        bias_KG = self.param("b_time_KG", time_bias, shape, jnp.float32).astype(jnp.float32)
        skip_KG = self.param("skip_KG", nn.initializers.ones, shape, jnp.float32).astype(jnp.float32)
        step_BLKG = jax.nn.softplus(projected("step", "KG").astype(jnp.float32) + bias_KG)
        step_BLKG1 = jnp.maximum(step_BLKG, s.least_step)[..., None]
        tokens = Tokens(q_BLKE, k_BLKE, v_BLKGU * step_BLKG1, -forget_KG[..., None] * step_BLKG1)
        before_BKGEU = None if cache is None else cache["memory_BKGEU"]
        out_BLKGU, memory_BKGEU = relayed(remember, tokens, context, before_BKGEU, self.execution.rules)
        out_BLKGU = (out_BLKGU + skip_KG[..., None] * v_BLKGU) * jax.nn.silu(gate_BLKGU)
        scale_KGU = self.param("scale_KGU", nn.initializers.ones, (*shape, s.head_dim), jnp.float32)
        out_BLKGU = (rms_norm(out_BLKGU, None, s.eps, axes=2) * scale_KGU.astype(jnp.float32)).astype(x_BLD.dtype)
        y_BLD = project("BLKGU,KGUD->BLD", out_BLKGU, w("w_out_KGUD", inputs="KGU"))
        y_BLD = y_BLD + b("b_out_D") if s.bias else y_BLD
        return y_BLD, {"q_BTKE": q_BTKE, "k_BTKE": k_BTKE, "v_BTKGU": v_BTKGU, "memory_BKGEU": memory_BKGEU}, {}
