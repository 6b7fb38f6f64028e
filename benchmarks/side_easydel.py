"""EasyDeL as a side of a comparison (worker.py): its model, its loss and its trainer's own `training_step`, jitted with
a donated state as its Trainer does; the optimizer is optax's, as its Trainer's is. Training only.

task["attention"], task["experts"], task["loss"] (fields of its LossConfig) and task["config_fields"] try other settings
than SETTINGS, which are the fastest found."""

from typing import Any

import easydel
import jax
import jax.numpy as jnp
import numpy as np
import optax
from easydel.infra.factory import registry
from easydel.infra.loss_utils import LossConfig
from easydel.trainers.trainer._fn import training_step
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from worker import Run, Task, serve

SETTINGS: dict[str, Any] = {"attention": "vanilla", "experts": "standard_moe", "loss": {"chunk_block_size": None}}


def model_of(task: Task) -> Any:
    """The model, float32 throughout. Raises ValueError if EasyDeL has no such family."""
    fields = dict(task["config"])
    family = fields.pop("model_type")
    try:
        config_class = registry.get_config(family)
    except Exception as error:
        raise ValueError(f"EasyDeL {easydel.__version__} has no model_type {family!r}") from error
    config = config_class(
        **fields,
        attn_mechanism=task["attention"],
        moe_method=task["experts"],
        attn_dtype=jnp.float32,  # bfloat16 unless told
        kvdtype=jnp.float32,
        **task.get("config_fields", {}),
    )
    with config.mesh:
        model = easydel.AutoEasyDeLModelForCausalLM.from_config(
            config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
    if config.tie_word_embeddings:
        # It makes a head of its own all the same and never reads it, but AdamW would walk through it at every step.
        model.lm_head.kernel = nnx.Param(None)
    return model


def matrices(params: Any) -> Any:
    """Which parameters decay."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def build(task: Task) -> tuple[Run, dict[str, Any]]:
    task = SETTINGS | task
    batch, length = task["batch"], task["length"]
    model = model_of(task)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b1=0.9, b2=0.95, weight_decay=0.1, mask=matrices)
    )
    state = easydel.EasyDeLState.create(model=model, tx=optimizer, init_opt_state=True)
    # Laid out as the step returns it, or the second step would compile again.
    state = jax.device_put(state, NamedSharding(model.mesh, PartitionSpec()))
    step = jax.jit(training_step, static_argnums=(2, 3, 4, 5, 6), donate_argnums=0)
    loss_config = LossConfig(**task["loss"])
    tokens = np.random.default_rng(0).integers(3, model.config.vocab_size, (batch, length), dtype=np.int32)
    rows = {"input_ids": tokens, "labels": tokens, "attention_mask": np.ones_like(tokens)}
    held = [state]

    def run() -> None:
        with model.mesh:
            for _ in range(task["steps"]):
                held[0], metrics = step(held[0], rows, loss_config, None, None, 1, None)
        jax.block_until_ready(held[0])
        print(f"loss {float(metrics.loss)}")
        assert np.isfinite(metrics.loss)

    return run, {
        "tokens": task["steps"] * batch * length,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        "versions": f"easydel {easydel.__version__}, jax {jax.__version__}",
    }


serve(build)
