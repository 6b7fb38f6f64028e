"""Every rule of the Neuron check catches what it names, where it stands; what the chip takes passes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.export import symbolic_shape
from jax.extend.mlir import ir
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from archzoo.layers.largest import by_maxima
from archzoo.sharding import check
from archzoo.sharding.checking import NEURON, found_in
from archzoo.sharding.ranges import Program

F = jax.ShapeDtypeStruct((8, 4), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((4, 4), jnp.float32)
I = jax.ShapeDtypeStruct((3,), jnp.int32)  # noqa: E741
N = jax.ShapeDtypeStruct((), jnp.int32)
KEY = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
MESH = AbstractMesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def callback(x: jax.Array) -> Any:
    return jax.pure_callback(np.asarray, x, x)


def over_devices(reduce: Callable[[jax.Array], jax.Array], out: Any = None) -> Callable[[jax.Array], jax.Array]:
    return jax.shard_map(reduce, mesh=MESH, in_specs=P(None, "fsdp"), out_specs=out or P())


def window(x: jax.Array, **dilation: tuple[int, ...]) -> jax.Array:
    return lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "VALID", **dilation)


def unbounded(x: jax.Array, n: jax.Array) -> jax.Array:
    return lax.fori_loop(0, n, lambda i, x: x + 1, x)


def wide(x: jax.Array) -> jax.Array:
    with jax.enable_x64(True):
        return x.astype(jnp.int64) + 2**40


POWER = """
func.func public @main(%x: tensor<4xi64>) -> tensor<4xi64> {
  %y = stablehlo.power %x, %x : tensor<4xi64> loc("there.py":1:2)
  return %y : tensor<4xi64>
}"""
"""JAX takes integer powers by products; other ways to StableHLO do not."""


def parsed(text: str) -> Program:
    """A program as text."""
    with jax.jit(jnp.sin).lower(F).compiler_ir("stablehlo").context:
        return Program(ir.Module.parse(text))


def double(x: jax.Array) -> jax.Array:
    with jax.enable_x64(True):
        return x.astype(jnp.float64) + 1


INT_ROW = jax.ShapeDtypeStruct((4, 8), jnp.int32)
BREAKS: dict[str, tuple[str, str, Callable[..., Any] | str, tuple[Any, ...]]] = {
    # name: code, operation, a function that breaks the rule, what it takes
    "solve": ("EUOC002", "triangular_solve", lambda a: lax.linalg.triangular_solve(a, a), (SQUARE,)),
    "fourier": ("EUOC002", "fft", jnp.fft.rfft, (F,)),
    "dynamic": ("EMOD025", "dynamic", lambda x: x + 1, (jax.ShapeDtypeStruct(symbolic_shape("b, 4"), jnp.float32),)),
    "cond": ("control-flow", "case", lambda x, n: lax.cond(n > 0, jnp.sin, jnp.cos, x), (F, N)),
    "until": ("trip-count", "while", lambda x: lax.while_loop(lambda x: jnp.sum(x) < 3, lambda x: x + 1, x), (F,)),
    "bound": ("trip-count", "while", unbounded, (F, N)),
    "argmax": ("EVRF019", "reduce", jnp.argmax, (F,)),
    "complex": ("EVRF004", "complex", lambda x: lax.complex(x, x).real, (F,)),
    "double": ("EVRF005", "convert", double, (F,)),
    "float8": ("EVRF051/052", "convert", lambda x: x.astype(jnp.float8_e4m3fn), (F,)),
    "philox": ("EVRF006", "rng_bit_generator",
               lambda k: lax.rng_bit_generator(k, (3,), algorithm=lax.RandomAlgorithm.RNG_PHILOX),
               (jax.ShapeDtypeStruct((4,), jnp.uint32),)),
    "threefry": ("EVRF006", "call threefry2x32", lambda k: jax.random.bits(k, (3,)),
                 (jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")),)),
    "randint": ("EVRF006", "call _randint", lambda k: jax.random.randint(k, (3,), 0, 9), (KEY,)),
    "integer top_k": ("EVRF013", "top_k", lambda i: lax.top_k(i, 2), (I,)),
    "float sort": ("sort-comparator", "sort", jnp.sort, (F,)),
    "integer scatter": ("EVRF016/060", "scatter", lambda i: jnp.zeros(9, jnp.int32).at[jnp.clip(i, 0, 8)].add(1), (I,)),
    "gather": ("EVRF031/056", "gather", lambda x, i: jnp.take(x, i, axis=0, mode="clip"), (F, I)),
    "gather the least": ("EVRF031/056", "gather", lambda x, i: jnp.take(x, i.min()[None], axis=0, mode="clip"), (F, I)),
    "gather a block": ("EVRF031/056", "gather", lambda x, i: x[jnp.clip(i, 0, 8)], (F, I)),
    "scatter": ("EVRF031/056", "scatter", lambda x, i: x.at[i].set(0, mode="promise_in_bounds"), (F, I)),
    "integer product": ("EVRF035", "dot_general", lambda i: jnp.dot(i, i), (I,)),
    "integer sum": ("EVRF061/063", "all_reduce", over_devices(lambda i: lax.psum(i, "fsdp")), (INT_ROW,)),
    "integer sums": ("EVRF061/063", "reduce_scatter",
                     over_devices(lambda i: lax.psum_scatter(i, "fsdp", tiled=True), P("fsdp")), (INT_ROW,)),
    "wide power": ("EVRF062", "power", POWER, ()),
    "wide constant": ("ESFH002", "constant", wide, (F,)),
    "callback": ("EVRF015", "Callback", callback, (F,)),
    "kernel": ("EVRF015", "custom_call kernel", lambda x: jax.ffi.ffi_call("kernel", F)(x), (F,)),
    "eigenvalues": ("EVRF015", "eigh", jnp.linalg.eigh, (SQUARE,)),
    "dilated": ("EVRF017/018", "reduce_window", partial(window, window_dilation=(2, 2)), (F,)),
    "spread": ("EVRF017/018", "reduce_window", partial(window, base_dilation=(2, 2)), (F,)),
}  # fmt: skip

PASSES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "scan": (lambda x: lax.scan(lambda sum, row: (sum + row, sum), jnp.zeros(4), x), (F,)),
    "fixed loop": (lambda x: lax.fori_loop(0, 8, lambda i, sum: sum + x[i], jnp.zeros(4)), (F,)),
    "clipped": (lambda x, i: jnp.take(x, jnp.clip(i, 0, 7), axis=0), (F, I)),
    "clipped twice": (lambda x, i: x[jnp.clip(i, 0, 7), jnp.clip(i, 0, 3)], (F, I)),
    "remembered": (lambda x, i: jax.grad(lambda x: jnp.take(x, i, axis=0, mode="clip").sum())(x), (F, I)),
    "chosen": (lambda x: jnp.take_along_axis(x, lax.top_k(x, 2)[1], axis=-1), (F,)),
    "chosen by maxima": (lambda x: jnp.take_along_axis(x, by_maxima(x, 2)[1], axis=-1), (F,)),
    "cumulated": (lambda x: jnp.cumsum(x, axis=0), (F,)),
    "integer sort": (jnp.sort, (I,)),
    "plain window": (window, (F,)),
    "integers set": (lambda i: jnp.zeros(9, jnp.int32).at[jnp.clip(i, 0, 8)].set(1), (I,)),
    "reduced": (over_devices(lambda x: lax.psum(x, "fsdp")), (jax.ShapeDtypeStruct((4, 8), jnp.float32),)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_breach_is_found(name: str) -> None:
    code, operation, function, shapes = BREAKS[name]
    every = found_in(parsed(function), NEURON) if isinstance(function, str) else check(function, *shapes)
    found = [finding for finding in every if finding.code == code]
    assert any(operation in finding.op for finding in found), every
    assert all(finding.remedy and (finding.source == "unknown" or ".py:" in finding.source) for finding in found)


def test_every_rule_has_a_breach() -> None:
    assert {rule.code for rule in NEURON} == {code for code, *_ in BREAKS.values()}


@pytest.mark.parametrize("name", PASSES)
def test_what_the_chip_takes_passes(name: str) -> None:
    function, shapes = PASSES[name]
    assert check(function, *shapes) == []


def test_a_finding_names_the_line_that_made_the_operation() -> None:
    def greedy(x: jax.Array) -> jax.Array:
        return jnp.argmax(x)

    (finding,) = check(greedy, F)
    assert finding.source == f"{__file__}:{greedy.__code__.co_firstlineno + 1}"
    assert finding.severity == "error"


def test_drawing_with_the_chips_own_generator_only_warns() -> None:
    found = check(lambda key: jax.random.normal(key, (3,)), KEY)
    assert found
    assert {finding.severity for finding in found} == {"warning"}


def test_a_mesh_that_nobody_has_is_lowered_for() -> None:
    sharded = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(MESH, P("fsdp")))

    def function(x: jax.Array) -> jax.Array:
        return jnp.argmax(lax.with_sharding_constraint(x @ x.T, P("fsdp", "tensor")), axis=1)

    assert [finding.code for finding in check(function, sharded, mesh=MESH)] == ["EVRF019"]


def test_a_target_without_rules_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'tpu'.*target=neuron"):
        check(jnp.sin, F, target="tpu")
