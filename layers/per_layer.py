"""Per-layer embeddings (Gemma 3n, Google DeepMind 2025; Gemma 4, 2026): every layer reads something of its own about
each token, looked up by the token's id in a table of its own and projected from the token's embedding,

    p_l = (e_l[token] * sqrt(P) + norm(W_l x_0 / sqrt(D))) / sqrt(2)

and adds norm(W_out (activation(W_gate x) * p_l)) to its residual. The layer's output is then scaled by a number that
is part of the checkpoint and is not trained.

Dimensions: B batch, L length, D width, V vocab of the tables, N layers, P what a layer reads of a token.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ..sharding.rules import constrain
from .block import PARTS
from .dense import attach, project, weight
from .execution import Execution
from .lookup import look_up
from .mlp import ACTIVATIONS
from .norms import RMSNorm
from .spec import Context, require

AXES = {"D": "width", "V": "vocab", "N": "per_layer", "P": "per_layer"}


@dataclass(frozen=True, kw_only=True)
class PerLayer:
    """`dim` numbers a token for each layer, from tables over `vocab` ids; norm: of what is projected."""

    vocab: int
    dim: int
    norm: RMSNorm = RMSNorm()

    def __post_init__(self) -> None:
        for field in ("vocab", "dim"):
            require(self, getattr(self, field) > 0, field, "it must be positive")

    def shell(self, execution: Execution, depth: int) -> nn.Module:
        """Called (x_BLD, tokens_BL), gives [depth, batch, length, dim]."""
        return PerLayerShell(self, execution, depth)


class PerLayerShell(nn.Module):
    spec: PerLayer
    execution: Execution
    depth: int

    @nn.compact
    def __call__(self, x_BLD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
        s, width = self.spec, x_BLD.shape[-1]
        table = (s.vocab, self.depth, s.dim)
        embed_VNP = self.param("embed_VNP", nn.initializers.normal(s.dim**-0.5), table, jnp.float32)
        sizes = {"D": width, "N": self.depth, "P": s.dim}
        w_DNP = weight(self, "w_DNP", sizes, "D", self.execution)
        table_VNP = constrain(embed_VNP, self.execution.rules, "vocab")  # as the embedding's (decoder.py)
        told_BLNP = look_up(table_VNP, tokens_BL, self.execution).astype(x_BLD.dtype) * math.sqrt(s.dim)
        seen_BLNP = project("BLD,DNP->BLNP", x_BLD, w_DNP) * width**-0.5
        seen_BLNP = attach(self, s.norm.shell(self.execution, "P"), "norm")(seen_BLNP)
        return jnp.moveaxis((told_BLNP + seen_BLNP) * 0.5**0.5, 2, 0)


@dataclass(frozen=True, kw_only=True)
class ScaledBlock:
    """Attention and MLP between norms, then what the layer reads of its own, and the sum times the layer's number.

    mlp_normed: the MLP has norms around it; one that is given the residual as it stands brings its own.
    dim: how much the layer reads of its own, of a model with per-layer inputs; 0 for nothing."""

    norm: RMSNorm
    mlp_normed: bool = True
    dim: int = 0
    activation: str = "gelu_tanh"

    def __post_init__(self) -> None:
        require(self, self.dim >= 0, "dim", "it must be positive, or 0 for nothing")
        require(self, self.activation in ACTIVATIONS, "activation", f"it takes {', '.join(ACTIVATIONS)}")

    def shell(self, execution: Execution, attention: Any, mlp: Any) -> nn.Module:
        return ScaledBlockShell(self, execution, attention, mlp)


class ScaledBlockShell(nn.Module):
    spec: ScaledBlock
    execution: Execution
    attention: Any
    mlp: Any

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Mapping[str, Any] | None
    ) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
        s, entries, aux = self.spec, {}, {}

        def norm(name: str, x: jax.Array) -> jax.Array:
            y: jax.Array = attach(self, s.norm.shell(self.execution), name)(x)
            return y

        for part, layer in zip(PARTS, (self.attention, self.mlp), strict=True):
            normed = part == "attention" or s.mlp_normed
            y_BLD = norm(f"{part}_before", x_BLD) if normed else x_BLD
            held = None if cache is None else cache[part]
            y_BLD, entries[part], aux[part] = attach(self, layer.shell(self.execution), part)(y_BLD, context, held)
            x_BLD = x_BLD + (norm(f"{part}_after", y_BLD) if normed else y_BLD)
        if s.dim:
            if context.own_BLP is None:
                raise ValueError(f"ScaledBlock.dim is {s.dim}: the model has no inputs per layer (Spec.per_layer)")
            w = partial(weight, self, sizes={"D": x_BLD.shape[-1], "P": s.dim}, execution=self.execution)
            gate_BLP = ACTIVATIONS[s.activation](project("BLD,DP->BLP", x_BLD, w("own_gate_DP", inputs="D")))
            y_BLD = project("BLP,PD->BLD", gate_BLP * context.own_BLP, w("own_out_PD", inputs="P"))
            x_BLD = x_BLD + norm("own_after", y_BLD)
        scale_1 = self.param("scale_1", nn.initializers.ones, (1,), jnp.float32)
        return x_BLD * jax.lax.stop_gradient(scale_1).astype(x_BLD.dtype), entries, aux
