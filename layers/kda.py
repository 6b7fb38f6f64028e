"""Kimi Delta Attention: the gated delta rule (delta.py) where every channel of a key has a decay of its own.

Kimi Linear, Kimi team 2025 (arXiv 2510.26692), section 3: decay and output gate come through a narrow layer.

Dimensions: B batch, L length, D width, H heads, E head_dim, R rank, T taps of the convolution."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .convolution import convolve
from .delta import Tokens, delta_rule, log_rate, time_bias, unit
from .dense import attach, project, weight
from .execution import Execution
from .norms import RMSNorm
from .relay import relayed
from .spec import Context, require

AXES = {"D": "width", "H": "heads", "E": "head_dim", "R": "latent_dim", "T": "taps", "B": "batch"}


@dataclass(frozen=True, kw_only=True)
class KimiDelta:
    """`heads` memories of [head_dim, head_dim].

    rank: of the layers that decay and gate come through.  taps: of the convolution of queries, keys and values.
    norm: of the output, before it is gated by a sigmoid."""

    heads: int
    head_dim: int
    rank: int
    taps: int = 4
    norm: RMSNorm = RMSNorm()

    def __post_init__(self) -> None:
        for field in ("heads", "head_dim", "rank"):
            require(self, getattr(self, field) > 0, field, "it must be positive")
        require(self, self.taps > 1, "taps", "it must be at least 2")

    def shell(self, execution: Execution) -> nn.Module:
        return KimiDeltaShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        entry = jax.ShapeDtypeStruct((batch, self.taps - 1, self.heads, self.head_dim), dtype)
        # The memory sums over all tokens: it is float32 whatever the rest is.
        memory = jax.ShapeDtypeStruct((batch, self.heads, self.head_dim, self.head_dim), jnp.float32)
        return {"q_BTHE": entry, "k_BTHE": entry, "v_BTHE": entry, "memory_BHEE": memory}

    def flops(self, length: int) -> float:
        """Of the recurrence: recall, correct, read; and of the convolution."""
        return self.heads * self.head_dim * (6 * self.head_dim + 6 * self.taps)


class KimiDeltaShell(nn.Module):
    spec: KimiDelta
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, jax.Array] | None
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
        s = self.spec
        sizes = {"D": x_BLD.shape[-1], "H": s.heads, "E": s.head_dim, "R": s.rank, "T": s.taps}
        w = partial(weight, self, sizes=sizes, execution=self.execution)

        def mixed(name: str) -> tuple[jax.Array, jax.Array]:
            x_BLHE = project("BLD,DHE->BLHE", x_BLD, w(f"w{name}_DHE", inputs="D"))
            held = None if cache is None else cache[f"{name}_BTHE"]
            x_BLHE, new_BTHE = convolve(
                x_BLHE, w(f"conv_{name}_HET", inputs="T"), context, held, self.execution.rules, ("heads", None)
            )
            return jax.nn.silu(x_BLHE), new_BTHE

        def narrow(name: str) -> jax.Array:
            x_BLR = project("BLD,DR->BLR", x_BLD, w(f"w_{name}_down_DR", inputs="D"))
            return project("BLR,RHE->BLHE", x_BLR, w(f"w_{name}_up_RHE", inputs="R")).astype(jnp.float32)

        (q_BLHE, q_BTHE), (k_BLHE, k_BTHE), (v_BLHE, v_BTHE) = map(mixed, "qkv")
        forget_H = jnp.exp(self.param("log_forget_H", log_rate, (s.heads,), jnp.float32).astype(jnp.float32))
        bias_HE = self.param("b_step_HE", time_bias, (s.heads, s.head_dim), jnp.float32).astype(jnp.float32)
        rate_BLH = project("BLD,DH->BLH", x_BLD, w("w_rate_DH", inputs="D")).astype(jnp.float32)
        decay_BLHE = -forget_H[:, None] * jax.nn.softplus(narrow("step") + bias_HE)
        # One value head a key head: the rule's axis G.
        tokens = Tokens(
            unit(q_BLHE) * s.head_dim**-0.5,
            unit(k_BLHE),
            v_BLHE[:, :, :, None].astype(jnp.float32),
            decay_BLHE[:, :, :, None],
            jax.nn.sigmoid(rate_BLH)[..., None],
        )
        before_BHGEE = None if cache is None else cache["memory_BHEE"][:, :, None]
        out_BLHGE, memory_BHGEE = relayed(delta_rule, tokens, context, before_BHGEE, self.execution.rules)
        out_BLHE = attach(self, s.norm.shell(self.execution, "E"), "out_norm")(out_BLHGE[:, :, :, 0])
        out_BLHE = (out_BLHE * jax.nn.sigmoid(narrow("gate"))).astype(x_BLD.dtype)
        y_BLD = project("BLHE,HED->BLD", out_BLHE, w("wo_HED", inputs="HE"))
        entries = {"q_BTHE": q_BTHE, "k_BTHE": k_BTHE, "v_BTHE": v_BTHE, "memory_BHEE": memory_BHGEE[:, :, 0]}
        return y_BLD, entries, {}
