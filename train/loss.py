"""What training minimises: cross entropy over the vocabulary without all logits at once, and the routers' losses.

The head is the widest product of a small model, and its logits the largest array. So tokens go through it a chunk at
a time, and where a gradient is asked for, the same pass gives it: a chunk's logits are made once, give the loss, d
hidden and d head, and are gone (the idea of Liger Kernel, Hsu et al. 2024, section 3.2, and of Cut Cross-Entropy,
Wijmans et al. 2024). z-loss: PaLM, Chowdhery et al. 2022, section 5. Losses of routers: layers/router.py.

Every loss is a sum over tokens divided by the number of tokens of the whole step, so that the losses and gradients of
its parts add up to those of the whole.

Terms: nats, the unit of cross entropy under the natural logarithm; load, how often each expert was chosen.

Dimensions: T tokens, C tokens of a chunk, N chunks, D width, V vocab, X experts, R repeats of a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..layers.decoder import Decoder, Spec, capped
from ..layers.execution import Execution
from ..layers.mtp import ahead, handed_on, reaches
from ..layers.router import balance_loss
from ..layers.spec import require
from ..sharding.rules import Rules, axis_names, constrain, parts

Batch = Mapping[str, jax.Array]
"""tokens, targets, segment_ids int32 and weights float32, each [batch, length] (data.py)."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Coefficients of what is added to the mean cross entropy; `Losses()` adds nothing.

    z: logsumexp(logits)^2 of the vocabulary, a mean over targets. The others are means over tokens, summed over layers:
    router_z: logsumexp(logits)^2 of the router.  balance: the balance loss over the whole step; 1 a layer when even.
    sequence_balance: the balance loss within each row.
    mtp: the cross entropy of multi-token prediction, a mean over its modules, each over all targets (DeepSeek-V3, 2024,
    eqs. 24-25), and the losses of their routers; without it they are not computed.
    """

    z: float = 0.0
    router_z: float = 0.0
    balance: float = 0.0
    sequence_balance: float = 0.0
    mtp: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            require(self, getattr(self, field.name) >= 0, field.name, "it cannot be negative")


def default_losses(spec: Spec) -> Losses:
    """What the field uses for the routers of this model, if it has any.

    Selection biases: only DeepSeek-V3's 1e-4 within sequences (2024, section 4.2). Others: 1e-2 for balance and 1e-3
    for the router's z-loss, as OLMoE (2024, section 2). Multi-token prediction: 0.3, as DeepSeek-V3 began.
    """
    mtp = 0.0 if spec.mtp is None else 0.3
    routers = [layer.mlp.router for layer in spec.layers if hasattr(layer.mlp, "router")]
    if not routers:
        return Losses(mtp=mtp)
    if all(router.keeps_even for router in routers):
        return Losses(sequence_balance=1e-4, mtp=mtp)
    return Losses(balance=1e-2, router_z=1e-3, mtp=mtp)


# --- the loss of a batch ---------------------------------------------------------------------------------------------


class Whole(NamedTuple):
    """The step that a batch is a part of, float32: the sum of its weights, its tokens that are not padding, its loads.

    loads: by router, as `routers` names them; None where the batch is the whole.
    """

    weight: jax.Array
    tokens: jax.Array
    loads: Mapping[str, jax.Array] | None = None


def measure(batch: Batch) -> Whole:
    return Whole(jnp.sum(batch["weights"]), jnp.sum(batch["segment_ids"] > 0, dtype=jnp.float32))


class Sums(NamedTuple):
    """Of a batch, float32: its nats, the statistics of its routers, and the nats of multi-token prediction (the mean
    over its modules), None without.
    """

    nats: jax.Array
    statistics: dict[str, Any]
    mtp: jax.Array | None = None


def loss_and_aux(
    params: Any, batch: Batch, whole: Whole, *, spec: Spec, execution: Execution, losses: Losses
) -> tuple[jax.Array, Sums]:
    """(this batch's share of the step's total loss, its sums). All add up over the batches of a step."""
    hidden_BLD, predicted, aux = forward_all(params, batch, spec, execution, losses)
    rules = execution.rules
    total, nats = token_loss(params, hidden_BLD, batch, spec, losses.z, rules)
    statistics = routers(aux)
    mtp: jax.Array | None = None
    if predicted:
        further_on = [(h_BLD, further(batch, k)) for k, h_BLD in enumerate(predicted, start=1)]
        later = [token_loss(params, h_BLD, targets, spec, rules=rules) for h_BLD, targets in further_on]
        total += losses.mtp * jnp.mean(jnp.stack([loss for loss, _ in later]))
        mtp = jnp.mean(jnp.stack([nats for _, nats in later]))
    total = total / jnp.maximum(whole.weight, 1e-8) + router_loss(statistics, whole, losses)
    return total, Sums(nats, statistics, mtp)


def predicts(spec: Spec, losses: Losses) -> bool:
    """Whether multi-token prediction is trained."""
    return spec.mtp is not None and losses.mtp > 0


def forward_all(
    params: Any, batch: Batch, spec: Spec, execution: Execution, losses: Losses
) -> tuple[jax.Array, tuple[jax.Array, ...], Any]:
    """`forward`, with the hidden states of what predicts further tokens where that is trained."""
    hidden_BLD, aux = forward(params, batch, spec, execution)
    if not predicts(spec, losses):
        return hidden_BLD, (), aux
    model, given = Decoder(spec, execution), (batch["tokens"], handed_on(hidden_BLD, aux), batch["segment_ids"])
    predicted, more = model.apply({"params": params}, *given, method="predict")
    return hidden_BLD, predicted, {**aux, **more}


def further(batch: Batch, places: int) -> dict[str, jax.Array]:
    """The targets so many places on, and their weights: none where that is another document."""
    weights_BL = jnp.where(reaches(batch["segment_ids"], places), ahead(batch["weights"], places), 0)
    return {"targets": ahead(batch["targets"], places), "weights": weights_BL}


def forward(params: Any, batch: Batch, spec: Spec, execution: Execution) -> tuple[jax.Array, Any]:
    """(hidden states [batch, length, width], the decoder's auxiliary tree) of a batch."""
    model = Decoder(spec, execution)
    hidden_BLD, aux = model.apply({"params": params}, batch["tokens"], batch["segment_ids"], method="hidden")
    return hidden_BLD, aux


def token_loss(
    params: Any, hidden_BLD: jax.Array, batch: Batch, spec: Spec, z: float = 0.0, rules: Rules | None = None
) -> tuple[jax.Array, jax.Array]:
    """`cross_entropy` of a batch with the model's own head."""
    head = params["embed_VD" if spec.tied else "head_DV"]
    return cross_entropy(
        hidden_BLD,
        head,
        batch["targets"],
        batch["weights"],
        tied=spec.tied,
        scale=spec.logit_scale,
        softcap=spec.logit_softcap,
        z=z,
        rules=rules,
    )


# --- routers ---------------------------------------------------------------------------------------------------------


def routers(aux: Any, path: str = "") -> dict[str, Any]:
    """The statistics of each router (layers/router.py), by its layer's path: {"run_0/layer_0/mlp": {"load_X": ...}}."""
    if "load_X" in aux:
        return {path: aux}
    below = {f"{path}/{name}" if path else name: part for name, part in aux.items() if isinstance(part, Mapping)}
    return {found: held for name, part in below.items() for found, held in routers(part, name).items()}


def router_loss(statistics: Mapping[str, Any], whole: Whole, losses: Losses) -> jax.Array:
    """The share in the total loss of routers with these statistics, summed over layers: a float32 scalar."""
    total = jnp.zeros((), jnp.float32)
    for path, held in statistics.items():
        load_RX = held["load_X"] if whole.loads is None else whole.loads[path]
        balance_R = balance_loss(load_RX, held["prob_X"], whole.tokens)
        sums_R = losses.router_z * held["z"] + losses.sequence_balance * held["sequence"]
        total += jnp.sum(losses.balance * balance_R + sums_R / jnp.maximum(whole.tokens, 1))
    return total


# --- cross entropy ---------------------------------------------------------------------------------------------------


LOGITS = 2**24
"""Logits at a time at least: 64 MiB, few sums into the head's gradient, and products at full speed."""


class _Head(NamedTuple):
    tied: bool
    scale: float
    softcap: float | None
    z: float


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    tied: bool,
    scale: float = 1.0,
    softcap: float | None = None,
    z: float = 0.0,
    chunk: int | None = None,
    rules: Rules | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(sum of weight * (nats + z * logsumexp(logits)^2), sum of weight * nats) over all tokens: float32 scalars.

    hidden: [..., width], in the dtype to multiply in.  head: [width, vocab], or if tied the embedding [vocab, width];
    its gradient is summed in float32.  targets: int [...].  weights: float [...], taken as constants.
    scale: multiplies the logits.  softcap: they then become softcap * tanh(logits / softcap).  chunk: how many tokens
    have logits at a time; None for as many as make these LOGITS numbers, or 8 times as large as hidden. The first
    result has a gradient, the second none. rules: how tokens are spread over the mesh in force, those of a row too.
    """
    width, vocab = head.shape[::-1] if tied else head.shape
    hidden_TD = hidden.reshape(-1, width)
    tokens = hidden_TD.shape[0]
    chunk = max(8 * width * tokens, LOGITS) // vocab if chunk is None else chunk
    chunks = -(-tokens // max(1, chunk))
    count = _dividing(max(1, min(chunks, tokens)), tokens, rules)

    def into(x: jax.Array) -> jax.Array:
        return over_tokens(_strided(x, count), rules)

    total, nats = _summed(
        into(hidden_TD), head, into(targets.reshape(-1)), into(weights.reshape(-1)), _Head(tied, scale, softcap, z)
    )
    return total, jax.lax.stop_gradient(nats)


def _strided(x: jax.Array, chunks: int) -> jax.Array:
    """[T, ...] to [C, N, ...], zeros at the end: chunk i has every N-th token, so tokens stay on their devices."""
    rest = -x.shape[0] % chunks
    x = jnp.pad(x, ((0, rest), *((0, 0),) * (x.ndim - 1))) if rest else x
    return x.reshape(-1, chunks, *x.shape[1:])


def _chunk(x_CND: jax.Array, targets_CN: jax.Array, weights_CN: jax.Array, i: jax.Array) -> tuple[jax.Array, ...]:
    take = partial(jax.lax.dynamic_index_in_dim, index=i, axis=1, keepdims=False)
    return take(x_CND), take(targets_CN), take(weights_CN)


def over_tokens(x: jax.Array, rules: Rules | None) -> jax.Array:
    """x [C, ...] with its tokens spread over all devices that share the batch or a sequence, where they divide."""
    if rules is None:
        return x
    tokens = _of_tokens(rules)
    return x if x.shape[0] % _devices(tokens) else constrain(x, tokens, "batch")


def _of_tokens(rules: Rules) -> Rules:
    """The rules by which `batch` is tokens of all rows in one axis."""
    return replace(rules, batch=tuple(dict.fromkeys((*axis_names(rules.batch), *axis_names(rules.length)))))


def _devices(tokens: Rules) -> int:
    sizes: Any = jax.sharding.get_abstract_mesh().shape
    return parts(tokens, "batch", sizes)


def _dividing(count: int, tokens: int, rules: Rules | None) -> int:
    """At least so many chunks, whose tokens divide over the devices: a chunk that does not is whole on each of them."""
    devices = 1 if rules is None else _devices(_of_tokens(rules))
    if devices == 1 or tokens % devices:
        return count
    own = tokens // devices
    return next(n for n in range(min(count, own), own + 1) if own % n == 0)


class _Chunk(NamedTuple):
    """Float32: logits [C, V] and exp(logits - their largest), its sum and the logsumexp [C, 1]; whether a logit is the
    target's [C, V]; both sums [2].
    """

    logits: jax.Array
    e: jax.Array
    total: jax.Array
    lse: jax.Array
    hit: jax.Array
    sums: jax.Array


def _evaluate(x_CD: jax.Array, w: jax.Array, targets_C: jax.Array, weights_C: jax.Array, head: _Head) -> _Chunk:
    logits_CV = jax.lax.dot_general(x_CD, w, _sums(1, 1 if head.tied else 0), preferred_element_type=jnp.float32)
    logits_CV = capped(logits_CV * head.scale, head.softcap)
    most_C1 = jnp.max(logits_CV, axis=-1, keepdims=True)
    e_CV = jnp.exp(logits_CV - most_C1)  # the one exponential, for the loss and for its gradient
    total_C1 = jnp.sum(e_CV, axis=-1, keepdims=True)
    lse_C1 = most_C1 + jnp.log(total_C1)
    # A comparison, not a gather: it stays local where the vocabulary is sharded.
    hit_CV = targets_C[:, None] == jnp.arange(logits_CV.shape[1])
    nats_C = lse_C1[:, 0] - jnp.sum(jnp.where(hit_CV, logits_CV, 0), axis=-1)
    z_C = nats_C + head.z * jnp.square(lse_C1[:, 0])
    sums = jnp.stack([jnp.sum(weights_C * z_C), jnp.sum(weights_C * nats_C)])
    return _Chunk(logits_CV, e_CV, total_C1, lse_C1, hit_CV, sums)


def _sums(left: int, right: int) -> tuple[Any, Any]:
    """Dimension numbers of a product of two matrices that sums over these axes."""
    return (((left,), (right,)), ((), ()))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _summed(
    x_CND: jax.Array, w: jax.Array, targets_CN: jax.Array, weights_CN: jax.Array, head: _Head
) -> tuple[jax.Array, jax.Array]:
    cast = w.astype(x_CND.dtype)

    def step(sums: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        x_CD, targets_C, weights_C = _chunk(x_CND, targets_CN, weights_CN, i)
        return sums + _evaluate(x_CD, cast, targets_C, weights_C, head).sums, None

    sums, _ = jax.lax.scan(step, jnp.zeros(2, jnp.float32), jnp.arange(x_CND.shape[1]))
    return sums[0], sums[1]


def _forward(
    x_CND: jax.Array, w: jax.Array, targets_CN: jax.Array, weights_CN: jax.Array, head: _Head
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The loss and, in the same pass, its gradients by x and w: what is kept for the backward pass is the answer."""
    cast = w.astype(x_CND.dtype)

    def step(carry: tuple[jax.Array, jax.Array, jax.Array], i: jax.Array) -> tuple[Any, None]:
        sums, dx_CND, dw = carry
        x_CD, targets_C, weights_C = _chunk(x_CND, targets_CN, weights_CN, i)
        at = _evaluate(x_CD, cast, targets_C, weights_C, head)
        weights_C1 = weights_C[:, None]
        d_CV = at.e * (weights_C1 * (1 + 2 * head.z * at.lse) / at.total) - jnp.where(at.hit, weights_C1, 0)
        if head.softcap is not None:
            d_CV *= 1 - jnp.square(at.logits / head.softcap)
        d_CV = (d_CV * head.scale).astype(x_CD.dtype)
        dx_CD = jax.lax.dot_general(d_CV, cast, _sums(1, 0 if head.tied else 1))
        left, right = (d_CV, x_CD) if head.tied else (x_CD, d_CV)
        dw += jax.lax.dot_general(left, right, _sums(0, 0), preferred_element_type=jnp.float32)
        return (sums + at.sums, jax.lax.dynamic_update_index_in_dim(dx_CND, dx_CD, i, axis=1), dw), None

    start = jnp.zeros(2, jnp.float32), jnp.zeros_like(x_CND), jnp.zeros(w.shape, jnp.float32)
    (sums, dx_CND, dw), _ = jax.lax.scan(step, start, jnp.arange(x_CND.shape[1]))
    return (sums[0], sums[1]), (dx_CND, dw.astype(w.dtype))


def _backward(
    head: _Head, gradients: tuple[jax.Array, jax.Array], given: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None, None]:
    dx_CND, dw = gradients
    scale, _ = given
    return (dx_CND * scale).astype(dx_CND.dtype), (dw * scale).astype(dw.dtype), None, None


_summed.defvjp(_forward, _backward)
