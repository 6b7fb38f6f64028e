"""The programs of a model, as functions and the shapes they take, for whoever looks at them without running them.

init     a new state, by a key
train    a step of the optimizer
prefill  prompts in, the logits after each and a cache out
decode   CHUNK tokens more of each row: greedily, or `sample` by its key
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from ..layers import decoding
from ..layers.decoder import Spec, cache_shapes, param_shapes
from ..layers.execution import Execution, new_key
from ..sharding.mesh import misfit, parse_mesh
from ..sharding.rules import rules_by_name
from .loss import default_losses
from .optimizer import Optimizer
from .placement import Placement, shapes_on, spread
from .step import init_state, make_step

Shape = jax.ShapeDtypeStruct


class Program(NamedTuple):
    """function(*shapes) is what is lowered."""

    function: Callable[..., Any]
    shapes: tuple[Any, ...]


def programs(
    spec: Spec,
    execution: Execution,
    batch: int = 2,
    length: int = 64,
    placement: Placement | None = None,
    optimizer: Optimizer | None = None,
) -> dict[str, Program]:
    """A model's programs by name; nothing is allocated.

    batch, length: rows, and tokens of each, that are trained on or prefilled; decoding has room for CHUNK more.
    placement: over which mesh training is spread. Decoding is not: parameters and caches are whole there.
    """
    if placement is not None:
        execution = replace(execution, rules=placement.rules)
    optimizer = optimizer or Optimizer(steps=100, name="muon")
    key = jax.eval_shape(lambda: new_key(0, execution))
    step = make_step(spec, execution, optimizer, default_losses(spec))
    sharding = None if placement is None else placement.batch
    text = {name: Shape((batch, length), jnp.int32, sharding=sharding) for name in ("tokens", "targets", "segment_ids")}
    text["weights"] = Shape((batch, length), jnp.float32, sharding=sharding)

    execution = replace(execution, rules=None)
    plain = decoding.decoded(spec)
    params, room = param_shapes(plain), length + decoding.CHUNK
    prompt = Shape((batch, length), jnp.int32), Shape((batch,), jnp.int32)
    held = cache_shapes(plain, batch, room, execution.dtype)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl="rbg"), batch))
    going_on = (
        Shape((batch, spec.vocab), jnp.float32), held, Shape((batch,), jnp.bool_), keys, Shape((), jnp.int32),
        Shape((), jnp.float32),
    )  # fmt: skip

    def prefill(params: Any, tokens_BL: jax.Array, pad_B: jax.Array) -> Any:
        return decoding.prefill(plain, execution, params, tokens_BL, pad_B, room, execution.dtype)

    decode, stop = partial(decoding.decode, plain, execution), tuple(spec.eos_ids)
    return {
        "init": Program(partial(init_state, spec, optimizer), (key,)),
        "train": Program(step, (shapes_on(spec, optimizer, placement), text)),
        "prefill": Program(prefill, (params, *prompt)),
        "decode": Program(partial(decode, stop, False), (params, *going_on)),
        "sample": Program(partial(decode, stop, True), (params, *going_on)),
    }


def on_no_devices(spec: Spec, mesh: str, rules: str, batch: int, length: int) -> Placement:
    """A placement to lower for on a mesh that nobody has, as "fsdp=8,tensor=4".

    Raises ValueError, with numbers, where the batch or a parameter does not divide over it.
    """
    sizes, named = parse_mesh(mesh), rules_by_name(rules)
    reason = misfit(sizes, spread(spec, batch, length), named)
    if reason is not None:
        raise ValueError(f"mesh {mesh}: {reason}")
    abstract: Any = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    return Placement(abstract, named)
