"""Gated DeltaNet: linear attention whose memory is a matrix a head, decayed and corrected by every token.

The delta rule: Schlag et al. 2021; in parallel over a chunk: Yang et al. 2024, "Parallelizing linear transformers with
the delta rule", section 3; gated by a decay: Yang et al. 2025 ("Gated Delta Networks", eq. 10):

    S_t = a_t S_{t-1} + k_t u_t^T,    u_t = b_t (v_t - k_t^T a_t S_{t-1}),    o_t = q_t^T S_t

Within a chunk the u_t solve a triangular system; between chunks only S travels. The decay may be of a head or of each
of its key channels (kda.py). Keys that are corrected by more than all of the error, b_t up to 2, turn eigenvalues
negative: Grazzi et al. 2025.

Dimensions: B batch, L length, D width, K key heads, G value heads per key head, E key dimensions (of a decay, E or 1),
U value dimensions, T taps of the convolution, N chunks, C tokens of a chunk as queries and M as keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from .chunks import decayed, decays, fold, unfold
from .convolution import convolve
from .dense import attach, project, weight
from .execution import Execution
from .norms import RMSNorm
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

CHUNK = 64
"""Tokens a chunk where a head has one decay: products of that size are worth more than the square that they cost."""

CHANNEL_CHUNK = 16
"""Where every channel has its own, so that each pair of tokens costs an exponential a channel."""


@dataclass(frozen=True, kw_only=True)
class GatedDelta:
    """`value_heads` memories of [key_dim, value_dim]; each of `key_heads` heads of queries and keys serves as many of
    them.

    taps: of the convolution that queries, keys and values go through.  reach: the most by which a token corrects what
    its key recalls; 1 replaces it, up to 2 overshoots. norm: of the output, before it is gated by silu."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int = 4
    reach: float = 1.0
    norm: RMSNorm = RMSNorm()

    def __post_init__(self) -> None:
        for field in ("key_heads", "value_heads", "key_dim", "value_dim"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        divides = self.value_heads % self.key_heads == 0
        require(self, divides, "value_heads", f"it must be a multiple of key_heads, which is {self.key_heads}")
        require(self, self.taps > 1, "taps", "it must be at least 2")
        require(self, 0 < self.reach <= 2, "reach", "it must be between 0 and 2")

    def shell(self, execution: Execution) -> nn.Module:
        return GatedDeltaShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        keys, group, before = self.key_heads, self.value_heads // self.key_heads, self.taps - 1
        entry = jax.ShapeDtypeStruct((batch, before, keys, self.key_dim), dtype)
        values = jax.ShapeDtypeStruct((batch, before, keys, group, self.value_dim), dtype)
        # The memory sums over all tokens: it is float32 whatever the rest is.
        memory = jax.ShapeDtypeStruct((batch, keys, group, self.key_dim, self.value_dim), jnp.float32)
        return {"q_BTKE": entry, "k_BTKE": entry, "v_BTKGU": values, "memory_BKGEU": memory}

    def flops(self, length: int) -> float:
        """Of the recurrence: recall, correct, read; and of the convolution."""
        channels = 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
        return 6 * self.value_heads * self.key_dim * self.value_dim + 2 * self.taps * channels


# --- the rule --------------------------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """What the rule reads of its tokens, float32.

    q, k: of unit length, the query times its scale.  decay: log of what is kept of the memory before a token, for a
    head (a last axis of 1) or for each of its key channels. rate: b_t."""

    q_BLKE: jax.Array
    k_BLKE: jax.Array
    v_BLKGU: jax.Array
    decay_BLKGE: jax.Array
    rate_BLKG: jax.Array


def unit(x: jax.Array) -> jax.Array:
    """x / sqrt(sum(x^2) + 1e-6) over the last axis, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def delta_rule(tokens: Tokens, context: Context, memory_BKGEU: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """What every token reads [B, L, K, G, U], and the memory after the last; memory_BKGEU: before the first, None for
    an empty one. Padding leaves it untouched, and a packed document starts from an empty one."""
    batch, length, keys, group, values = tokens.v_BLKGU.shape
    real_BLKG = context.real_BL()[:, :, None, None]
    tokens = tokens._replace(
        rate_BLKG=jnp.where(real_BLKG, tokens.rate_BLKG, 0),
        decay_BLKGE=jnp.where(real_BLKG[..., None], tokens.decay_BLKGE, 0),
    )
    if memory_BKGEU is None:
        memory_BKGEU = jnp.zeros((batch, keys, group, tokens.k_BLKE.shape[-1], values), jnp.float32)
    if length == 1:
        out_BKGU, memory_BKGEU = one_token(jax.tree.map(lambda x: x[:, 0], tokens), memory_BKGEU)
        return out_BKGU[:, None], memory_BKGEU
    return in_chunks(tokens, memory_BKGEU, context.segments_BL)


def one_token(token: Tokens, memory_BKGEU: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rule as it stands above; the token's arrays have no length axis."""
    q_BKE, k_BKE, v_BKGU, decay_BKGE, rate_BKG = token
    memory_BKGEU = jnp.exp(decay_BKGE)[..., None] * memory_BKGEU
    recalled_BKGU = jnp.einsum("BKE,BKGEU->BKGU", k_BKE, memory_BKGEU)
    error_BKGU = rate_BKG[..., None] * (v_BKGU - recalled_BKGU)
    memory_BKGEU = memory_BKGEU + jnp.einsum("BKE,BKGU->BKGEU", k_BKE, error_BKGU)
    return jnp.einsum("BKE,BKGEU->BKGU", q_BKE, memory_BKGEU), memory_BKGEU


def in_chunks(
    tokens: Tokens, memory_BKGEU: jax.Array, segments_BL: jax.Array | None, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """The same for many tokens, in products: a scan over chunks carries the memory, all else is parallel."""
    length = tokens.v_BLKGU.shape[1]
    chunk = chunk or (CHUNK if tokens.decay_BLKGE.shape[-1] == 1 else CHANNEL_CHUNK)
    chunk = min(chunk, 1 << (length - 1).bit_length())

    q_NBKCE, k_NBKCE, v_NBKGCU = (fold(x, chunk) for x in tokens[:3])
    rate_NBKGC1 = fold(tokens.rate_BLKG[..., None], chunk)
    kept_NBKGCE, seen_NBCM, into_NBKGCE, left_NBKGCE = decays(tokens.decay_BLKGE, segments_BL, chunk)
    keys_NBKGCM = rate_NBKGC1 * decayed(k_NBKCE, k_NBKCE, kept_NBKGCE, seen_NBCM & ~jnp.eye(chunk, dtype=bool))
    solve_NBKGCM = unit_lower_inverse(keys_NBKGCM)
    k_NBKGCE = k_NBKCE[:, :, :, None]
    own_NBKGCU = solve_NBKGCM @ (rate_NBKGC1 * v_NBKGCU)
    recall_NBKGCE = solve_NBKGCM @ (rate_NBKGC1 * k_NBKGCE * into_NBKGCE)
    parts = (
        own_NBKGCU,
        recall_NBKGCE,
        q_NBKCE[:, :, :, None] * into_NBKGCE,
        decayed(q_NBKCE, k_NBKCE, kept_NBKGCE, seen_NBCM),
        k_NBKGCE * left_NBKGCE,
        into_NBKGCE[..., -1, :, None],
    )

    def step(memory_BKGEU: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        own_BKGCU, recall_BKGCE, read_BKGCE, scores_BKGCM, write_BKGCE, keep_BKGE1 = part
        error_BKGCU = own_BKGCU - recall_BKGCE @ memory_BKGEU
        out_BKGCU = read_BKGCE @ memory_BKGEU + scores_BKGCM @ error_BKGCU
        return keep_BKGE1 * memory_BKGEU + jnp.swapaxes(write_BKGCE, -1, -2) @ error_BKGCU, out_BKGCU

    memory_BKGEU, out_NBKGCU = jax.lax.scan(step, memory_BKGEU, parts)
    return unfold(out_NBKGCU, length), memory_BKGEU


def unit_lower_inverse(strict_CM: jax.Array) -> jax.Array:
    """(1 + strict)^-1 for the last two axes, strictly lower triangular and of a size that is a power of 2.

    By doubling: with the inverse x of the diagonal blocks of one size, that of blocks twice as large is x - x b x,
    where b is what lies below the diagonal in them. In products alone, and stable, which powers of `strict` are not."""
    size = strict_CM.shape[-1]
    index, block = jnp.arange(size), 1
    inverse_CM = jnp.broadcast_to(jnp.eye(size, dtype=strict_CM.dtype), strict_CM.shape)
    dot = partial(jnp.matmul, precision="highest")
    while block < size:
        pair, half = index // (2 * block), index // block % 2
        below_CM = (pair[:, None] == pair) & (half[:, None] == 1) & (half == 0)
        inverse_CM = inverse_CM - dot(dot(inverse_CM, jnp.where(below_CM, strict_CM, 0)), inverse_CM)
        block *= 2
    return inverse_CM


# --- the shell -------------------------------------------------------------------------------------------------------


def log_rate(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Initial log of how fast a head forgets: uniform in [1, 16], as in Mamba-2 (Dao & Gu 2024)."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def time_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Initial bias of a time step, whose softplus is log-uniform in [0.001, 0.1] (the same)."""
    step = jnp.exp(jax.random.uniform(key, shape, dtype, jnp.log(1e-3), jnp.log(1e-1)))
    return step + jnp.log(-jnp.expm1(-step))


class GatedDeltaShell(nn.Module):
    spec: GatedDelta
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "K": s.key_heads, "G": s.value_heads // s.key_heads}
        sizes |= {"E": s.key_dim, "U": s.value_dim, "T": s.taps}
        w = partial(weight, self, sizes=sizes, execution=self.execution)
        shape = (sizes["K"], sizes["G"])
        rules = self.execution.rules
        held = cache or dict.fromkeys(("q_BTKE", "k_BTKE", "v_BTKGU", "memory_BKGEU"))
        q_BLKE = project("BLD,DKE->BLKE", x_BLD, w("w_q_DKE", inputs="D"))
        k_BLKE = project("BLD,DKE->BLKE", x_BLD, w("w_k_DKE", inputs="D"))
        v_BLKGU = project("BLD,DKGU->BLKGU", x_BLD, w("w_v_DKGU", inputs="D"))
        q_BLKE, q_BTKE = convolve(
            q_BLKE, w("conv_q_KET", inputs="T"), context, held["q_BTKE"], rules, ("kv_heads", None)
        )
        k_BLKE, k_BTKE = convolve(
            k_BLKE, w("conv_k_KET", inputs="T"), context, held["k_BTKE"], rules, ("kv_heads", None)
        )
        v_BLKGU, v_BTKGU = convolve(
            v_BLKGU, w("conv_v_KGUT", inputs="T"), context, held["v_BTKGU"], rules, ("kv_heads", "q_per_kv", None)
        )

        step_BLKG = project("BLD,DKG->BLKG", x_BLD, w("w_step_DKG", inputs="D")).astype(jnp.float32)
        rate_BLKG = project("BLD,DKG->BLKG", x_BLD, w("w_rate_DKG", inputs="D")).astype(jnp.float32)
        forget_KG = jnp.exp(self.param("log_forget_KG", log_rate, shape, jnp.float32).astype(jnp.float32))
        bias_KG = self.param("b_step_KG", time_bias, shape, jnp.float32).astype(jnp.float32)
        tokens = Tokens(
            unit(jax.nn.silu(q_BLKE)) * s.key_dim**-0.5,
            unit(jax.nn.silu(k_BLKE)),
            jax.nn.silu(v_BLKGU).astype(jnp.float32),
            (-forget_KG * jax.nn.softplus(step_BLKG + bias_KG))[..., None],
            s.reach * jax.nn.sigmoid(rate_BLKG),
        )
        out_BLKGU, memory_BKGEU = relayed(delta_rule, tokens, context, held["memory_BKGEU"], rules)
        out_BLKGU = attach(self, s.norm.shell(self.execution, "U"), "out_norm")(out_BLKGU)
        gate_BLKGU = project("BLD,DKGU->BLKGU", x_BLD, w("w_gate_DKGU", inputs="D")).astype(jnp.float32)
        out_BLKGU = (out_BLKGU * jax.nn.silu(gate_BLKGU)).astype(x_BLD.dtype)
        y_BLD = project("BLKGU,KGUD->BLD", out_BLKGU, w("w_out_KGUD", inputs="KGU"))
        return y_BLD, {"q_BTKE": q_BTKE, "k_BTKE": k_BTKE, "v_BTKGU": v_BTKGU, "memory_BKGEU": memory_BKGEU}, {}
