"""One step of training as a pure function, and the state it maps: parameters, optimizer, number of the step.

A large batch can be taken in parts, one after another. Every loss is a sum over tokens over the tokens of the whole
batch (loss.py), so gradients of parts add up to that of the whole. One term does not split: the balance loss
multiplies two means over the whole batch, load and probability. So a step in parts that has it first runs all parts
forward once for the loads alone, which adds about a third to its cost.

Auxiliary-loss-free balancing (Wang et al. 2024, algorithm 1; DeepSeek-V3, 2024, section 2.1.2): after each step, the
selection bias of every expert that was chosen more often than the mean goes down by `bias_rate`, and of the others up.

Dimensions: R repeats of a run, X experts.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..layers.accounting import axes, is_predictor, tree_of
from ..layers.decoder import Decoder, Spec
from ..layers.execution import Execution
from ..layers.router import balance_loss, load_metrics
from ..sharding.rules import Rules, constrain
from .loss import Batch, Losses, Sums, forward, forward_all, loss_and_aux, measure, predicts, routers, token_loss
from .optimizer import SELECTION_BIAS, Optimizer, learning_rate, make_optimizer

Metrics = dict[str, jax.Array]


class State(NamedTuple):
    """params: the model's, float32.  opt_state: Optax's.  step: int32, how many steps were taken."""

    params: Any
    opt_state: Any
    step: jax.Array


def init_state(spec: Spec, optimizer: Optimizer, key: jax.Array) -> State:
    """A new state. Pure: under a mesh, jit it with `state_shardings` as its out_shardings."""
    state: State = start_state(spec, optimizer, Decoder(spec).init(key, None)["params"])
    return state


@partial(jax.jit, static_argnums=(0, 1))
def start_state(spec: Spec, optimizer: Optimizer, params: Any) -> State:
    """A new state with a float32 copy of given parameters, for example of a model to go on with."""
    params = jax.tree.map(partial(jnp.array, dtype=jnp.float32), params)
    return State(params, make_optimizer(optimizer, spec).init(params), jnp.zeros((), jnp.int32))


def make_step(
    spec: Spec,
    execution: Execution,
    optimizer: Optimizer,
    losses: Losses,
    accumulate: int = 1,
    bias_rate: float = 1e-3,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """step(state, batch) -> (state, metrics). Pure; jit it with donate_argnums=0, which reuses the state's memory.

    batch: tokens, targets, segment_ids int32 and weights float32, each [batch, length] (data.py).
    accumulate: in how many equal parts to take the batch; memory is that of a part.
    metrics, float32 scalars: loss (nats a target), total (with what `losses` adds), grad_norm (before clipping),
    learning_rate, tokens (the batch's sum of weights), and where there are routers, means over their layers:
    load_entropy, max_violation, mean_violation (layers/router.py), dropped (fraction of the choices), and the losses
    router_z, balance and sequence_balance without coefficients; and where multi-token prediction is trained, mtp (its
    nats a target).
    Raises ValueError, when traced, for a batch that does not divide into the parts.
    """
    transform = make_optimizer(optimizer, spec, execution.rules)
    gradient = make_gradient(spec, execution, losses, accumulate)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        (total, sums), gradients = gradient(state.params, batch)
        whole = measure(batch)
        updates, opt_state = transform.update(gradients, state.opt_state, state.params)
        if spec.mtp is not None and not predicts(spec, losses):  # else weight decay would wear away what is not trained
            updates = jax.tree.map(
                lambda idle, u: jnp.zeros_like(u) if idle else u, tree_of(spec, is_predictor), updates
            )
        params = optax.apply_updates(state.params, updates)
        params = balance_biases(params, {path: held["load_X"] for path, held in sums.statistics.items()}, bias_rate)
        metrics = {
            "loss": sums.nats / jnp.maximum(whole.weight, 1e-8),
            "total": total,
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": learning_rate(optimizer, state.step),
            "tokens": whole.weight,
        }
        metrics |= {} if sums.mtp is None else {"mtp": sums.mtp / jnp.maximum(whole.weight, 1e-8)}
        return State(params, opt_state, state.step + 1), metrics | router_metrics(sums.statistics, whole.tokens)

    return step


def make_gradient(
    spec: Spec, execution: Execution, losses: Losses, accumulate: int = 1
) -> Callable[[Any, Batch], tuple[tuple[jax.Array, Sums], Any]]:
    """gradient(params, batch) -> ((total loss, sums over tokens), gradients). Pure."""
    of_part = jax.value_and_grad(partial(loss_and_aux, spec=spec, execution=execution, losses=losses), has_aux=True)

    def loads(params: Any, batch: Batch) -> dict[str, jax.Array]:
        *_, aux = forward_all(params, batch, spec, execution, losses)
        return {path: held["load_X"] for path, held in routers(aux).items()}

    def gradient(params: Any, batch: Batch) -> Any:
        parts, whole = split(batch, accumulate), measure(batch)
        if losses.balance > 0 and accumulate > 1:
            whole = whole._replace(loads=total_of(lambda part: loads(params, part), parts))
        (total, sums), gradients = total_of(lambda part: of_part(params, part, whole), parts)
        return (total, sums), as_parameters(gradients, spec, execution.rules)

    return gradient


def make_eval(spec: Spec, execution: Execution) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
    """evaluate(params, batch) -> (sum of nats, sum of weights): both add up over batches. Pure; jit it."""

    def evaluate(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden_BLD, _ = forward(params, batch, spec, execution)
        return token_loss(params, hidden_BLD, batch, spec, rules=execution.rules)[1], jnp.sum(batch["weights"])

    return evaluate


def as_parameters(gradients: Any, spec: Spec, rules: Rules | None) -> Any:
    """Gradients spread as their parameters, which the partitioner would not always keep."""
    if rules is None:
        return gradients
    names = axes(spec)
    return jax.tree.map(lambda gradient, own: constrain(gradient, rules, *own), gradients, names)


# --- parts -----------------------------------------------------------------------------------------------------------


def split(batch: Batch, parts: int) -> Batch:
    """[batch, ...] to [parts, batch / parts, ...]: a part has every `parts`-th row, so rows stay on their devices."""
    rows = batch["tokens"].shape[0]
    if parts < 1 or rows % parts:
        raise ValueError(f"a batch of {rows} rows does not divide into accumulate={parts} equal parts")
    return {name: jnp.moveaxis(x.reshape(rows // parts, parts, *x.shape[1:]), 1, 0) for name, x in batch.items()}


def total_of(function: Callable[[Batch], Any], parts: Batch) -> Any:
    """The sum over the parts of a function that gives a tree of arrays."""
    first = jax.tree.map(lambda x: x[0], parts)
    if parts["tokens"].shape[0] == 1:
        return function(first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first))
    return jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, function(part)), None), zeros, parts)[0]


# --- routers ---------------------------------------------------------------------------------------------------------


def balance_biases(params: Any, loads: Mapping[str, jax.Array], rate: float) -> Any:
    """The parameters with every selection bias moved by rate * sign(mean load - load), from loads [R, X] by router."""

    def moved(path: Any, leaf: jax.Array) -> jax.Array:
        names = tuple(key.key for key in path)
        load_RX = loads.get("/".join(names[:-2])) if names[-2:] == SELECTION_BIAS else None
        if load_RX is None:
            return leaf
        return leaf + rate * jnp.sign(jnp.mean(load_RX, axis=-1, keepdims=True) - load_RX)

    return jax.tree_util.tree_map_with_path(moved, params)


def router_metrics(statistics: Mapping[str, Any], tokens: jax.Array) -> Metrics:
    """Means over all layers that have a router, from statistics summed over a step of so many tokens."""
    if not statistics:
        return {}
    tokens = jnp.maximum(tokens, 1)
    sums: Metrics = {}
    for held in statistics.values():
        repeats = held["z"].size
        means = {
            **load_metrics(held["load_X"]),
            "dropped": jnp.mean(held["dropped"] / jnp.maximum(jnp.sum(held["load_X"], axis=-1), 1)),
            "router_z": jnp.mean(held["z"]) / tokens,
            "balance": jnp.mean(balance_loss(held["load_X"], held["prob_X"], tokens)),
            "sequence_balance": jnp.mean(held["sequence"]) / tokens,
        }
        sums = {name: sums.get(name, 0) + repeats * mean for name, mean in means.items()}
    layers = sum(held["z"].size for held in statistics.values())
    return {name: value / layers for name, value in sums.items()}


# --- shardings -------------------------------------------------------------------------------------------------------


def state_shapes(spec: Spec, optimizer: Optimizer) -> State:
    """The state as ShapeDtypeStructs; nothing is allocated."""
    shapes: State = jax.eval_shape(partial(init_state, spec, optimizer), jax.random.key(0))
    return shapes


def state_shardings(spec: Spec, optimizer: Optimizer, mesh: Mesh, rules: Rules) -> State:
    """The NamedShardings of the state: of parameters by their axes, of moments as their parameters, else replicated."""
    params = rules.shardings(axes(spec), mesh)
    by_path = {_names(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(params)}

    def of(path: Any, leaf: Any) -> NamedSharding:
        # A moment's path in the optimizer's state ends with that of its parameter.
        names = _names(path)
        endings = (by_path.get(names[i:]) for i in range(len(names)))
        return next((found for found in endings if found is not None), NamedSharding(mesh, PartitionSpec()))

    shardings: State = jax.tree_util.tree_map_with_path(of, state_shapes(spec, optimizer))
    return shardings


def _names(path: Any) -> tuple[str, ...]:
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
