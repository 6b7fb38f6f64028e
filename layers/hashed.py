"""Experts by a table of tokens instead of a choice: hash layers (Roller et al. 2021), as the first layers of
DeepSeek-V4 (DeepSeek-AI 2026, section 2.1) have them. Which experts a token goes to follows from its id
alone, and never changes; what they weigh is scored as by any router.

The table is a parameter of whole numbers that are held as float32, exact up to 2^24: so parameters stay a tree that can
be differentiated, in which it has no gradient.

Dimensions: T tokens, D width, X experts, V vocab, K experts of a token."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from .router import SCORES, Groups, Routing, weights_of
from .spec import require

AXES = {"D": "width", "X": "routes"}

TABLE = "table_VK"
"""The parameter's name. No axis of it is one of others: it is whole on every device, and no matrix."""


@dataclass(frozen=True, kw_only=True)
class HashRouter:
    """Each of `vocab` tokens goes to its own `top_k` experts.

    vocab: None for as many as the model has.  score, renormalise, scale: as of a Router.
    """

    top_k: int
    vocab: int | None = None
    score: str = "softmax"
    renormalise: bool = True
    scale: float = 1.0

    OF_MODEL: ClassVar[tuple[str, ...]] = ("vocab",)

    def __post_init__(self) -> None:
        require(self, self.top_k > 0, "top_k", "it must be positive")
        require(self, self.vocab is None or self.vocab > 0, "vocab", "it must be positive")
        require(self, self.score in SCORES, "score", f"it takes {', '.join(SCORES)}")

    @property
    def groups(self) -> Groups | None:
        return None

    @property
    def keeps_even(self) -> bool:
        return True

    def shell(self, experts: int) -> nn.Module:
        require(self, self.vocab is not None, "vocab", "outside of a model it must be stated")
        return HashRouterShell(self, experts)


def spread(key: jax.Array, shape: tuple[int, int], experts: int) -> jax.Array:
    """A table [vocab, top_k] of different experts for each token, as many tokens to one as to another: float32."""
    (vocab, top_k), (first, step) = shape, jax.random.split(key)
    # By bits and a uniform number, as Neuron has no randint, nor a permutation that does without.
    first_V = jnp.argsort(jax.random.bits(first, (vocab,))) % experts
    most = max(experts // max(top_k, 1), 1)
    step_V = 1 + jnp.minimum(jnp.floor(jax.random.uniform(step, (vocab,)) * most).astype(jnp.int32), most - 1)
    return ((first_V[:, None] + step_V[:, None] * jnp.arange(top_k)) % experts).astype(jnp.float32)


class HashRouterShell(nn.Module):
    spec: HashRouter
    experts: int

    @nn.compact
    def __call__(self, x_TD: jax.Array, tokens_T: jax.Array) -> Routing:
        s, vocab, width = self.spec, self.spec.vocab or 0, x_TD.shape[-1]
        w_DX = self.param("w_DX", nn.initializers.normal(width**-0.5), (width, self.experts), jnp.float32)
        table_VK = self.param(TABLE, spread, (vocab, s.top_k), self.experts)
        # Neuron takes no index that may be out of bounds.
        rows_TK = jnp.take(jax.lax.stop_gradient(table_VK), jnp.clip(tokens_T, 0, vocab - 1), axis=0, mode="clip")
        experts_TK = jnp.clip(rows_TK.astype(jnp.int32), 0, self.experts - 1)
        logits_TX = jnp.dot(x_TD.astype(jnp.float32), w_DX.astype(jnp.float32))
        scores_TX = SCORES[s.score](logits_TX)
        return Routing(weights_of(scores_TX, experts_TK, s.renormalise, s.scale), experts_TK, scores_TX, logits_TX)
