"""archzoo's side of a comparison (worker.py): the library's own train step, `generate`, compilation and loss."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import archzoo
from archzoo.layers.grouped import mix
from archzoo.layers.moe import MoE
from archzoo.layers.router import Router
from archzoo.layers.spec import Context
from archzoo.train.loss import Losses, cross_entropy
from archzoo.train.optimizer import Optimizer
from archzoo.train.step import init_state, make_step, state_shapes
from worker import Run, Task, serve

Built = tuple[Run, dict[str, Any]]
OPTIMIZER = Optimizer(steps=10_000, name="adamw", learning_rate=1e-4)


def train(task: Task) -> Built:
    """task["steps"] steps of AdamW on random tokens."""
    spec = archzoo.spec_from_hf(task["config"])
    rows = batch(spec, task["batch"], task["length"])
    state = init_state(spec, OPTIMIZER, jax.random.key(0))
    step = jax.jit(make_step(spec, archzoo.Execution(), OPTIMIZER, Losses()), donate_argnums=0)
    begin = time.perf_counter()
    compiled = step.lower(state, rows).compile()
    seconds = time.perf_counter() - begin
    held = [state]

    def run() -> None:
        for _ in range(task["steps"]):
            held[0], metrics = compiled(held[0], rows)
        jax.block_until_ready(held[0])
        assert np.isfinite(metrics["loss"])

    flops = 3 * spec.flops_per_token(task["length"])
    return run, counts(spec) | {
        "compile_seconds": seconds,
        "tokens": task["steps"] * rows["tokens"].size,
        "flops": flops,
    }


def decode(task: Task) -> Built:
    """Greedy tokens after random prompts; `read` is the bytes that a step must read at least.

    These are the weights that all tokens use, the experts that they are expected to select when each is as likely, and
    the keys and values of half-way."""
    spec = archzoo.spec_from_hf(task["config"])
    rows, length, new = task["batch"], task["length"], task["new"]
    prompts = np.random.default_rng(0).integers(3, spec.vocab, (rows, length), dtype=np.int32)
    params = archzoo.Decoder(spec).init(jax.random.key(0), None)["params"]
    generate = partial(archzoo.generate, spec, params, prompts, new, stop=())

    def run() -> None:
        generate()

    return run, counts(spec) | {"tokens": rows * new, "read": bytes_a_step(spec, rows, length + new // 2)}


def bytes_a_step(spec: Any, rows: int, length: int) -> float:
    routed = [layer.mlp for layer in spec.layers if hasattr(layer.mlp, "router")]
    inactive = spec.param_count() - spec.active_param_count()
    missed = 1.0
    if routed:
        # A token misses an expert with this probability, all rows with its power.
        missed = (1 - routed[0].router.top_k / routed[0].experts) ** (rows - 1)
    looked_up = 0 if spec.tied else spec.vocab * spec.width
    weights = spec.param_count() - inactive * missed - looked_up
    return float(4 * weights + spec.cache_bytes(rows, length, "float32"))


def compilation(task: Task) -> Built:
    """Lowers and compiles a train step or a decode step anew each time, with nothing kept from the time before."""
    jax.config.update("jax_enable_compilation_cache", False)
    spec = archzoo.spec_from_hf(task["config"])
    lower = {"train": lower_train, "decode": lower_decode}[task["step"]]

    def run() -> None:
        jax.clear_caches()
        lower(spec).compile()

    return run, counts(spec) | {"runs": len(spec.runs)}


def lower_train(spec: Any) -> Any:
    step = jax.jit(make_step(spec, archzoo.Execution(), OPTIMIZER, Losses()), donate_argnums=0)
    return step.lower(state_shapes(spec, OPTIMIZER), batch(spec, 2, 64))


def lower_decode(spec: Any) -> Any:
    model = archzoo.Decoder(spec)

    def step(params: Any, tokens: Any, cache: Any) -> Any:
        return model.apply({"params": params}, tokens, cache, method="extend")

    cache = jax.eval_shape(partial(archzoo.init_cache, spec, 1, 128, "float32"))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.jit(step, donate_argnums=2).lower(spec.shapes, tokens, cache)


def loss(task: Task) -> Built:
    """Cross entropy and its gradients by hidden states and head: this library's, or task["full"] of all logits."""
    tokens, width, vocab = task["tokens"], task["width"], task["vocab"]
    rng = np.random.default_rng(0)
    hidden, head = (rng.standard_normal(shape, np.float32) for shape in ((tokens, width), (width, vocab)))
    hidden, head = jnp.asarray(hidden), jnp.asarray(head * width**-0.5)
    targets, weights = jnp.asarray(rng.integers(0, vocab, tokens)), jnp.full(tokens, 1 / tokens)

    def chunked(hidden: Any, head: Any) -> Any:
        return cross_entropy(hidden, head, targets, weights, tied=False)[0]

    def full(hidden: Any, head: Any) -> Any:
        logs = jax.nn.log_softmax(hidden @ head)
        return -jnp.sum(weights * jnp.take_along_axis(logs, targets[:, None], axis=-1)[:, 0])

    function: Callable[..., Any] = full if task["full"] else chunked
    compiled = jax.jit(jax.value_and_grad(function, argnums=(0, 1))).lower(hidden, head).compile()
    value = float(compiled(hidden, head)[0])

    def run() -> None:
        jax.block_until_ready(compiled(hidden, head))

    return run, {
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "loss": value,
        "logits": 4 * tokens * vocab,
    }


def grouped(task: Task) -> Built:
    """Rows times their group's matrix, and the gradients of both: this library's (layers/grouped.py), ragged_dot, which
    is given rows that are sorted already, or one dense product of as many rows."""
    rows, width, groups = task["rows"], task["width"], task["groups"]
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(groups, 2.0))  # uneven: the largest of 64 groups gets three times the mean
    group_T = rng.choice(groups, rows, p=shares).astype(np.int32)
    x_TD, dy_TG = (jnp.asarray(rng.standard_normal((rows, width), np.float32)) for _ in range(2))
    w_XGD = jnp.asarray(rng.standard_normal((groups, width, width), np.float32) * width**-0.5)
    one_T1 = jnp.ones((rows, 1))
    sizes_X = jnp.bincount(group_T, length=groups).astype(jnp.int32)

    def ours(x: Any, w: Any) -> Any:
        return mix(lambda w, x, weight: (x @ w.T) * weight, w, x, one_T1, jnp.asarray(group_T)[:, None])

    def ragged_dot(x: Any, w: Any) -> Any:
        return jax.lax.ragged_dot(x, w, sizes_X)

    def dense(x: Any, w: Any) -> Any:
        return x @ w

    way = {"archzoo": ours, "ragged_dot": ragged_dot, "dense": dense}[task["way"]]
    x, w = {
        "archzoo": (x_TD, w_XGD),
        "ragged_dot": (x_TD[np.argsort(group_T, kind="stable")], jnp.swapaxes(w_XGD, 1, 2)),
        "dense": (x_TD, w_XGD[0].T),
    }[task["way"]]

    def both_ways(x: Any, w: Any, dy: Any) -> Any:
        y, pull = jax.vjp(way, x, w)
        return y, *pull(dy)

    compiled = jax.jit(both_ways).lower(x, w, dy_TG).compile()

    def run() -> None:
        for _ in range(task["repeats"]):
            jax.block_until_ready(compiled(x, w, dy_TG))

    return run, {"tokens": task["repeats"] * rows}


def moe(task: Task) -> Built:
    """A mixture-of-experts layer and all its gradients, its tokens routed by a random router."""
    experts = MoE(experts=task["experts"], ffn=task["ffn"], router=Router(top_k=task["top_k"]))
    layer = experts.shell(archzoo.Execution())
    x_BLD = jax.random.normal(jax.random.key(0), (1, task["tokens"], task["width"]))
    positions = jnp.arange(task["tokens"], dtype=jnp.int32)
    context = Context(positions[None], None, None, positions, None)
    params = layer.init(jax.random.key(1), x_BLD, context, None)

    def loss(params: Any, x: Any) -> Any:
        return jnp.sum(layer.apply(params, x, context, None)[0] ** 2)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x_BLD).compile()

    def run() -> None:
        jax.block_until_ready(compiled(params, x_BLD))

    return run, {"tokens": task["tokens"]}


def batch(spec: Any, rows: int, length: int) -> dict[str, Any]:
    tokens = np.random.default_rng(0).integers(3, spec.vocab, (rows, length + 1), dtype=np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones((rows, length), np.int32),
        "weights": np.ones((rows, length), np.float32),
    }


def counts(spec: Any) -> dict[str, Any]:
    return {"parameters": spec.param_count()}


def build(task: Task) -> Built:
    tasks = {"train": train, "decode": decode, "compilation": compilation, "loss": loss, "grouped": grouped, "moe": moe}
    run, facts = tasks[task["what"]](task)
    return run, facts | {"versions": f"archzoo {archzoo.__version__}, jax {jax.__version__}"}


if __name__ == "__main__":
    serve(build)
