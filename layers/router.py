"""Which experts a token goes to, with what weight, and how evenly: scores, selection, balance losses and load
metrics.

Softmax top-k: Shazeer et al. 2017; load-balance loss: Fedus et al. 2021, eq. 4; router z-loss: Zoph et al. 2022, eq.
5; sigmoid scores, group-limited selection, selection-only bias and sequence-wise balance loss: DeepSeek-V3 (2024)
eqs. 12-20.

Dimensions: T tokens, D width, X experts (of the router: one score each), K chosen experts, B batch, L length.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from .largest import top_k
from .spec import require

AXES = {"D": "width", "X": "routes"}

SCORES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "softmax": lambda logits_TX: jax.nn.softmax(logits_TX, axis=-1),
    "sigmoid": jax.nn.sigmoid,
    # Of nothing the square root has no slope; what is added is lost in any score but that.
    "sqrt_softplus": lambda logits_TX: jnp.sqrt(jax.nn.softplus(logits_TX) + 1e-30),
}
"""Scores of experts [tokens, experts] from float32 logits; the last is DeepSeek-V4's (DeepSeek-AI 2026)."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Experts in `count` equal groups, of which the `kept` best may be chosen from; a group scores the sum of its
    `best` scores.
    """

    count: int
    kept: int
    best: int = 2

    def __post_init__(self) -> None:
        require(self, self.count > 0, "count", "it must be positive")
        require(self, 0 < self.kept <= self.count, "kept", f"it must be between 1 and count, which is {self.count}")
        require(self, self.best > 0, "best", "it must be positive")


class AnyRouter(Protocol):
    """What experts ask of a router: a frozen dataclass, that of this file or another.

    Its shell is called with what it reads of tokens [T, D] and with their ids [T], int32, and gives a Routing.
    """

    @property
    def top_k(self) -> int: ...
    @property
    def score(self) -> str: ...
    @property
    def groups(self) -> Groups | None: ...
    @property
    def renormalise(self) -> bool: ...
    @property
    def scale(self) -> float: ...

    @property
    def keeps_even(self) -> bool:
        """Whether it spreads tokens evenly by itself: there is nothing that a balance loss over the step would mend."""

    def shell(self, experts: int) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class Router:
    """Each token chooses `top_k` experts by its scores.

    score: softmax over all experts, or sigmoid or sqrt_softplus of each.  bias: a load-balancing bias added for
    selection only, without gradient. renormalise: the chosen scores are divided by their sum.  scale: multiplies the
    weights.
    logit_bias: a learned one, for weights as for choices."""

    top_k: int
    score: str = "softmax"
    groups: Groups | None = None
    bias: bool = False
    renormalise: bool = True
    scale: float = 1.0
    logit_bias: bool = False

    def __post_init__(self) -> None:
        require(self, self.top_k > 0, "top_k", "it must be positive")
        require(self, self.score in SCORES, "score", f"it takes {', '.join(SCORES)}")

    @property
    def keeps_even(self) -> bool:
        return self.bias

    def shell(self, experts: int) -> nn.Module:
        return RouterShell(self, experts)


class Routing(NamedTuple):
    """weights_TK float32 and experts_TK int32, best first; scores_TX float32 before the bias; logits_TX float32."""

    weights_TK: jax.Array
    experts_TK: jax.Array
    scores_TX: jax.Array
    logits_TX: jax.Array


def route(x_TD: jax.Array, w_DX: jax.Array, bias_X: jax.Array | None, spec: Router) -> Routing:
    """Scores, chooses and weighs in float32."""
    return choose(jnp.dot(x_TD.astype(jnp.float32), w_DX.astype(jnp.float32)), bias_X, spec)


def choose(logits_TX: jax.Array, bias_X: jax.Array | None, spec: Router) -> Routing:
    """`route` from float32 logits on."""
    scores_TX = SCORES[spec.score](logits_TX)
    choice_TX = scores_TX if bias_X is None else scores_TX + jax.lax.stop_gradient(bias_X.astype(jnp.float32))
    if spec.groups is not None:
        choice_TX = jnp.where(in_best_groups(choice_TX, spec.groups), choice_TX, -jnp.inf)
    _, experts_TK = top_k(jax.lax.stop_gradient(choice_TX), spec.top_k)
    weights_TK = weights_of(scores_TX, experts_TK, spec.renormalise, spec.scale)
    return Routing(weights_TK, experts_TK, scores_TX, logits_TX)


def weights_of(scores_TX: jax.Array, experts_TK: jax.Array, renormalise: bool, scale: float) -> jax.Array:
    """What the chosen experts weigh: float32 [tokens, choices]."""
    weights_TK = jnp.take_along_axis(scores_TX, experts_TK, axis=-1, mode="clip")
    if renormalise:
        # A sigmoid can leave every chosen score at nothing; the guard is DeepSeek-V3's.
        weights_TK = weights_TK / (jnp.sum(weights_TK, axis=-1, keepdims=True) + 1e-20)
    return weights_TK * scale


def in_best_groups(choice_TX: jax.Array, groups: Groups) -> jax.Array:
    """bool [tokens, experts]: whether an expert's group is among the kept ones."""
    tokens, experts = choice_TX.shape
    members = experts // groups.count
    best, _ = top_k(choice_TX.reshape(tokens, groups.count, members), min(groups.best, members))
    _, kept = top_k(jnp.sum(best, axis=-1), groups.kept)
    is_kept = jnp.any(kept[:, :, None] == jnp.arange(groups.count), axis=1)
    return jnp.repeat(is_kept, members, axis=-1)


class RouterShell(nn.Module):
    spec: Router
    experts: int

    @nn.compact
    def __call__(self, x_TD: jax.Array, tokens_T: jax.Array) -> Routing:
        width = x_TD.shape[-1]
        w_DX = self.param("w_DX", nn.initializers.normal(width**-0.5), (width, self.experts), jnp.float32)
        bias_X = self.param("bias_X", nn.initializers.zeros, (self.experts,), jnp.float32) if self.spec.bias else None
        if not self.spec.logit_bias:
            return route(x_TD, w_DX, bias_X, self.spec)
        b_X = self.param("b_X", nn.initializers.zeros, (self.experts,), jnp.float32)
        logits_TX = jnp.dot(x_TD.astype(jnp.float32), w_DX.astype(jnp.float32)) + b_X.astype(jnp.float32)
        return choose(logits_TX, bias_X, self.spec)


# --- balance ---------------------------------------------------------------------------------------------------------


def statistics(routing: Routing, real_BL: jax.Array, top_k: int) -> dict[str, jax.Array]:
    """Sums over the tokens that are not padding, so that parts of a batch add up to the whole. All float32.

    load_X: how often each expert was chosen.  prob_X: sum of the normalised scores.  tokens: how many.  z: sum of
    logsumexp(logits)^2. sequence: sum over rows, each weighted by its tokens, of its own balance loss."""
    batch, length = real_BL.shape
    experts = routing.scores_TX.shape[-1]
    real_BL1 = real_BL.astype(jnp.float32)[..., None]
    prob_BLX = routing.scores_TX / (jnp.sum(routing.scores_TX, axis=-1, keepdims=True) + 1e-20)
    prob_BX = jnp.sum(prob_BLX.reshape(batch, length, experts) * real_BL1, axis=1)
    chosen_BLX = jnp.sum(routing.experts_TK[..., None] == jnp.arange(experts), axis=1, dtype=jnp.float32)
    load_BX = jnp.sum(chosen_BLX.reshape(batch, length, experts) * real_BL1, axis=1)
    tokens_B = jnp.sum(real_BL1, axis=(1, 2))
    z_BL = jnp.square(jax.nn.logsumexp(routing.logits_TX, axis=-1)).reshape(batch, length)
    share_B = experts / (top_k * jnp.maximum(tokens_B, 1))
    return {
        "load_X": jnp.sum(load_BX, axis=0),
        "prob_X": jnp.sum(prob_BX, axis=0),
        "tokens": jnp.sum(tokens_B),
        "z": jnp.sum(z_BL * real_BL1[..., 0]),
        "sequence": jnp.sum(share_B * jnp.sum(load_BX * prob_BX, axis=-1)),
    }


def balance_loss(load_X: jax.Array, prob_X: jax.Array, tokens: jax.Array) -> jax.Array:
    """experts * sum over experts of (share of the choices) * (mean probability); 1 when even.

    Leading axes are layers.
    """
    share_X = jax.lax.stop_gradient(load_X / jnp.maximum(jnp.sum(load_X, axis=-1, keepdims=True), 1))
    return load_X.shape[-1] * jnp.sum(share_X * prob_X, axis=-1) / jnp.maximum(tokens, 1)


def load_metrics(load_X: jax.Array) -> Mapping[str, Any]:
    """How evenly experts are used, averaged over leading axes: entropy (1 is even) and the largest and mean
    deviation from even.
    """
    share_X = load_X / jnp.maximum(jnp.sum(load_X, axis=-1, keepdims=True), 1)
    experts = load_X.shape[-1]
    entropy = -jnp.sum(jax.scipy.special.xlogy(share_X, share_X), axis=-1) / jnp.log(max(experts, 2))
    return {
        "load_entropy": jnp.mean(entropy),
        "max_violation": jnp.mean(jnp.max(share_X, axis=-1) * experts - 1),
        "mean_violation": jnp.mean(jnp.mean(jnp.abs(share_X * experts - 1), axis=-1)),
    }
