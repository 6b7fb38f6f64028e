"""The decoder equals float64 NumPy, keeps time and documents apart, compiles by kind of layer and not by depth, and
takes a layer it has never heard of."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from archzoo.layers.accounting import axes
from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Decoder, Spec, document_positions, init_cache, param_shapes, unembed
from archzoo.layers.dense import project, weight
from archzoo.layers.execution import REMAT, Execution
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.norms import LayerNorm, RMSNorm
from archzoo.layers.rope import Rope
from archzoo.layers.spec import Context

from . import reference
from .conftest import (
    BFLOAT16,
    DENSE,
    FULL,
    GRADIENT,
    MODEL,
    SPECS,
    close,
    equations,
    extend,
    forward,
    normal,
    params_of,
    tokens_of,
)

BATCH, LENGTH = 3, 19  # as in test_cache.py, so that they share what is compiled


# --- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_float64_numpy(name: str) -> None:
    spec = SPECS[name]
    params, tokens = params_of(spec), tokens_of(spec, BATCH, LENGTH)
    logits = forward(spec, params, tokens)
    assert logits.dtype == jnp.float32
    close(logits, reference.decoder(spec, params, tokens), MODEL)


SEGMENTS = np.array([[1] * 7 + [2] * 8 + [3] * 4, [1] * 1 + [2] * 12 + [0] * 6, [1] * 19], np.int32)


@pytest.mark.parametrize("name", SPECS)
def test_a_packed_document_equals_the_document_alone(name: str) -> None:
    """The windowed one in blocks, too: 19 tokens are more than two windows."""
    spec = SPECS[name]
    params, tokens = params_of(spec), tokens_of(spec, BATCH, LENGTH)
    packed = forward(spec, params, tokens, SEGMENTS)
    for row, document in [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1)]:
        at = np.flatnonzero(SEGMENTS[row] == document)
        alone = np.zeros((BATCH, LENGTH), np.int32)
        alone[0, : len(at)] = tokens[row, at]  # what follows it does not matter
        close(packed[row, at], forward(spec, params, alone)[0, : len(at)], MODEL)
    assert np.all(np.isfinite(packed))


def test_positions_count_within_each_document() -> None:
    np.testing.assert_array_equal(
        document_positions(jnp.asarray([[1, 1, 1, 2, 2, 5, 0, 0]])), [[0, 1, 2, 0, 1, 0, 0, 1]]
    )


def test_given_positions_replace_the_default() -> None:
    spec = SPECS["full"]
    params, tokens = params_of(spec), tokens_of(spec, BATCH, LENGTH)
    plain = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    logits = forward(spec, params, tokens)
    close(forward(spec, params, tokens, None, plain + 3), logits, MODEL)  # rope is relative
    assert np.max(np.abs(forward(spec, params, tokens, None, plain * 3) - logits)) > 0.01


# --- causality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_a_token_changes_no_logits_before_it(name: str) -> None:
    spec, t = SPECS[name], 11
    params, tokens = params_of(spec), tokens_of(spec, BATCH, LENGTH)
    changed = tokens.copy()
    changed[:, t] = (tokens[:, t] + 1) % spec.vocab
    before, after = forward(spec, params, tokens), forward(spec, params, changed)
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    assert np.all(np.max(np.abs(before[:, t] - after[:, t]), axis=-1) > 1e-3)


@pytest.mark.parametrize("name", SPECS)
def test_no_gradient_flows_from_logits_to_later_tokens(name: str) -> None:
    """With a different token at each place, the gradient of an embedding row is that of the token there."""
    spec = SPECS[name].replace(tied=False)
    params, tokens = params_of(spec), np.arange(LENGTH, dtype=np.int32)[None]

    def outputs(embed_VD: Any) -> Any:
        hidden, _ = Decoder(spec).apply({"params": params | {"embed_VD": embed_VD}}, tokens, method="hidden")
        return hidden[0]

    @partial(jax.jit)
    def depends(embed_VD: Any, times: Any) -> Any:
        _, pull = jax.vjp(outputs, embed_VD)
        one_hot = (times[:, None] == jnp.arange(LENGTH)).astype(jnp.float32)
        weight = 1 + jnp.arange(spec.width) / spec.width
        return jax.vmap(lambda at: jnp.any(pull(at[:, None] * weight)[0] != 0, axis=-1))(one_hot)

    times = np.array([0, 1, 9, LENGTH - 2])
    depends_TL = np.asarray(depends(params["embed_VD"], times))[:, :LENGTH]
    reach = LENGTH if name != "ring" else 2 * 2 + 1  # two layers with a window of three
    expected = (np.arange(LENGTH) <= times[:, None]) & (times[:, None] - np.arange(LENGTH) < reach)
    np.testing.assert_array_equal(depends_TL, expected)


# --- how it is computed ----------------------------------------------------------------------------------------------

TINY = Spec(vocab=17, width=8, depth=4, attention=Attention(heads=2, kv_heads=1, head_dim=4, rope=Rope(dim=4)),
            mlp=GatedMLP(ffn=8), block=pre_norm(RMSNorm()))  # fmt: skip


def loss(spec: Spec, params: Any, tokens: Any, execution: Execution) -> Any:
    logits: Any = Decoder(spec, execution).apply({"params": params}, tokens)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1))


gradients = partial(jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=(0, 3)), TINY)


@pytest.mark.parametrize("execution", [*({"remat": name} for name in REMAT if name != "none"), {"unroll": 3}], ids=str)
def test_remat_and_unroll_change_no_gradient(execution: dict[str, Any]) -> None:
    params, tokens = params_of(TINY), tokens_of(TINY, 2, 6)
    plain = gradients(params, tokens, Execution())
    close(gradients(params, tokens, Execution(**execution)), plain, GRADIENT)


@pytest.mark.parametrize(("policy", "saves"), [("full", False), ("dots", True)])
def test_remat_keeps_what_its_policy_says(policy: str, saves: bool) -> None:
    params, tokens = params_of(TINY), tokens_of(TINY, 2, 6)

    def products(execution: Execution) -> int:
        jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss(TINY, p, tokens, execution)))(params)
        return sum(e.primitive.name == "dot_general" for e in equations(jaxpr.jaxpr))

    recomputed = products(Execution(remat=policy)) - products(Execution())
    assert recomputed == (2 if saves else 8)  # a layer has six projections and two products of attention


def test_unroll_is_layers_an_iteration_of_the_scan() -> None:
    run = partial(Decoder(TINY, Execution(unroll=3)).apply, {"params": params_of(TINY)})
    found = equations(jax.make_jaxpr(run)(tokens_of(TINY, 1, 4)).jaxpr)
    assert [e.params["unroll"] for e in found if e.primitive.name == "scan"] == [3]


def bodies(spec: Spec) -> int:
    shapes, tokens = param_shapes(spec), jax.ShapeDtypeStruct((1, 8), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda p, t: Decoder(spec).apply({"params": p}, t))(shapes, tokens)
    return sum(1 for _ in equations(jaxpr.jaxpr))


@pytest.mark.parametrize("name", ["full", "mixed"])
def test_what_is_compiled_does_not_grow_with_depth(name: str) -> None:
    spec = SPECS[name].replace(mlp=DENSE)
    period = len(spec.attention)
    assert bodies(spec.replace(depth=2 * period)) == bodies(spec.replace(depth=20 * period))
    assert bodies(spec.replace(depth=2 * period)) < 1.2 * bodies(spec.replace(depth=period))


def test_bfloat16_gives_float32_logits_near_those_of_float32() -> None:
    spec = SPECS["full"]
    params, tokens = params_of(spec), tokens_of(spec, BATCH, LENGTH)
    half = forward(spec, params, tokens, execution=Execution(dtype="bfloat16"))
    assert half.dtype == jnp.float32
    exact = np.asarray(forward(spec, params, tokens))
    close(half, exact, BFLOAT16)
    run = partial(Decoder(spec, Execution(dtype="bfloat16")).apply, {"params": params})
    *_, head = (e for e in equations(jax.make_jaxpr(run)(tokens).jaxpr) if e.primitive.name == "dot_general")
    assert [v.aval.dtype for v in head.invars] == [jnp.bfloat16] * 2
    assert head.outvars[0].aval.dtype == jnp.float32  # of bfloat16 factors, but never rounded to it


def test_a_sequence_longer_than_the_model_takes_is_refused() -> None:
    spec = SPECS["full"].replace(max_length=8)
    with pytest.raises(ValueError, match=r"a sequence of 9 tokens .* spec\.max_length is 8"):
        jax.eval_shape(Decoder(spec).apply, {"params": param_shapes(spec)}, jnp.zeros((1, 9), int))


# --- embedding and head ----------------------------------------------------------------------------------------------


def test_a_tied_model_has_one_table_and_reads_it_twice() -> None:
    tied = TINY.replace(tied=True)
    assert param_shapes(TINY).keys() - param_shapes(tied).keys() == {"head_DV"}
    params = params_of(tied)
    hidden = normal(0, 2, 3, 8)
    logits = hidden @ np.asarray(params["embed_VD"]).T
    close(unembed(tied, params, hidden, Execution()), logits, MODEL)
    untied = params | {"head_DV": params["embed_VD"].T}
    close(unembed(TINY, untied, hidden, Execution()), logits, MODEL)


def test_logits_are_scaled_before_the_softcap() -> None:
    params, hidden = params_of(TINY), 100 * normal(0, 2, 8)
    plain, scaled, both = (
        np.asarray(unembed(TINY.replace(changes), params, hidden, Execution()), np.float64)
        for changes in ({}, {"logit_scale": 0.25}, {"logit_scale": 0.25, "logit_softcap": 5.0})
    )
    close(scaled, plain / 4, MODEL)
    close(both, 5 * np.tanh(plain / 20), MODEL)


def test_the_softcap_bounds_logits_and_keeps_their_order() -> None:
    params = params_of(TINY)
    hidden = 100 * normal(0, 2, 8)
    plain, capped = (unembed(TINY.replace(logit_softcap=cap), params, hidden, Execution()) for cap in (None, 5.0))
    assert np.max(np.abs(plain)) > 50
    assert np.max(np.abs(capped)) <= 5
    close(capped, 5 * np.tanh(np.asarray(plain, np.float64) / 5), MODEL)


# --- parameters ------------------------------------------------------------------------------------------------------


def test_the_same_key_initialises_the_same_model_and_another_key_another() -> None:
    one, again, other = (Decoder(TINY).init(jax.random.key(k), jnp.zeros((1, 1), int))["params"] for k in (0, 0, 1))
    close(one, again, 0)
    assert np.max(np.abs(one["embed_VD"] - other["embed_VD"])) > 0.01
    assert jax.tree.map(lambda x: (x.shape, x.dtype), one) == jax.tree.map(
        lambda x: (x.shape, x.dtype), param_shapes(TINY)
    )
    layer = one["run_0"]["layer_0"]
    assert np.std(layer["mlp"]["w_up_DF"]) == pytest.approx(8**-0.5, rel=0.2)
    assert np.std(layer["attention"]["wo_KGED"]) == pytest.approx(8**-0.5, rel=0.2)
    assert not np.array_equal(layer["mlp"]["w_up_DF"][0], layer["mlp"]["w_up_DF"][1])  # layers are their own


# --- a layer of one's own --------------------------------------------------------------------------------------------

AXES = {"D": "width", "E": "head_dim", "B": "batch"}


@dataclass(frozen=True, kw_only=True)
class Leaky:
    """A leaky integrator, h_t = decay * h_(t-1) + x_t W: what a researcher might define in a script."""

    size: int
    decay: float = 0.9

    def shell(self, execution: Execution) -> nn.Module:
        return LeakyShell(self, execution)

    def cache(self, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {"state_BE": jax.ShapeDtypeStruct((batch, self.size), dtype)}

    def flops(self, length: int) -> float:
        return 2.0 * self.size


class LeakyShell(nn.Module):
    spec: Leaky
    execution: Execution

    @nn.compact
    def __call__(self, x_BLD: Any, context: Context, cache: Mapping[str, Any] | None) -> tuple[Any, Any, Any]:
        sizes = {"D": x_BLD.shape[-1], "E": self.spec.size}
        w_in_DE = weight(self, "w_in_DE", sizes, "D", self.execution)
        w_out_ED = weight(self, "w_out_ED", sizes, "E", self.execution)
        u_BLE = project("BLD,DE->BLE", x_BLD, w_in_DE).astype(jnp.float32)

        def step(h_BE: Any, now: Any) -> Any:
            u_BE, first_B, real_B = now
            moved = jnp.where(first_B[:, None], 0, self.spec.decay * h_BE) + u_BE
            h_BE = jnp.where(real_B[:, None], moved, h_BE)  # padding leaves the state alone
            return h_BE, h_BE

        start_BE = jnp.zeros_like(u_BLE[:, 0]) if cache is None else cache["state_BE"].astype(jnp.float32)
        by_time = (u_BLE, context.positions_BL == 0, context.real_BL())
        last_BE, h_LBE = jax.lax.scan(step, start_BE, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), by_time))
        h_BLE = jnp.moveaxis(h_LBE, 0, 1).astype(x_BLD.dtype)
        return project("BLE,ED->BLD", h_BLE, w_out_ED), {"state_BE": last_BE}, {"norm": jnp.sum(last_BE**2)}


OWN = Spec(
    vocab=17, width=8, depth=4, attention=(Leaky(size=6), FULL), mlp=GatedMLP(ffn=8), block=pre_norm(LayerNorm())
)


def test_a_layer_of_ones_own_trains() -> None:
    tokens = tokens_of(OWN, 2, 12)

    @partial(jax.jit)
    def step(params: Any) -> Any:
        value, gradient = jax.value_and_grad(partial(loss, OWN))(params, tokens, Execution())
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), value

    params, losses = params_of(OWN), []
    for _ in range(30):
        params, value = step(params)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]


def test_a_layer_of_ones_own_decodes_with_its_own_state() -> None:
    params, tokens = params_of(OWN), tokens_of(OWN, 2, 12)
    held = init_cache(OWN, 2, 12, "float32", jnp.asarray([0, 3]))
    assert held["run_0"]["layer_0"]["attention"]["state_BE"].shape == (2, 2, 6)
    aligned = np.stack([tokens[0], np.roll(tokens[1], 3)])
    logits = []
    for start, end in [(0, 5), *((t, t + 1) for t in range(5, 12))]:
        out, held = extend(OWN, params, aligned[:, start:end], held)
        logits.append(out)
    whole, got = forward(OWN, params, tokens), np.concatenate(logits, axis=1)
    close(got[0], whole[0], MODEL)
    close(got[1, 3:], whole[1, :9], MODEL)


def test_a_layer_of_ones_own_keeps_documents_apart() -> None:
    params, tokens = params_of(OWN), tokens_of(OWN, 2, 12)
    packed = forward(OWN, params, tokens, np.array([[1] * 5 + [2] * 7] * 2, np.int32))
    close(packed[0, 5:], forward(OWN, params, np.roll(tokens, -5, axis=1))[0, :7], MODEL)


def test_a_state_keeps_the_dtype_of_its_cache() -> None:
    """The layer computes its state in float32; a loop over decoding steps needs a cache that does not change."""
    held = init_cache(OWN, 2, 12, "bfloat16")
    run = partial(Decoder(OWN).apply, method="extend")
    _, after = jax.eval_shape(run, {"params": param_shapes(OWN)}, jnp.zeros((2, 1), int), held)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), held)


def test_a_layer_of_ones_own_is_counted_and_shown() -> None:
    without = OWN.replace(attention=FULL)
    per_leaky, per_full = 2 * 8 * 6, 8 * 32 + 2 * 8 * 16 + 32 * 8 + 2 * 8
    assert without.param_count() - OWN.param_count() == 2 * (per_full - per_leaky)
    assert axes(OWN)["run_0"]["layer_0"]["attention"]["w_in_DE"] == ("layers", "width", "head_dim")
    attention = FULL.flops(64) + 2 * (per_full - 2 * 8)
    assert without.flops_per_token(64) - OWN.flops_per_token(64) == pytest.approx(2 * (attention - 2 * per_leaky - 12))
    assert Spec.from_json(OWN.to_json()) == OWN


def test_statistics_of_layers_come_back_by_run_layer_and_part() -> None:
    run = partial(Decoder(OWN).apply, method="hidden")
    hidden, aux = jax.eval_shape(run, {"params": param_shapes(OWN)}, jnp.zeros((2, 12), int))
    assert hidden.shape == (2, 12, 8)
    assert aux["run_0"]["layer_0"]["attention"]["norm"].shape == (2,)
    moe = SPECS["latent"]
    _, aux = jax.eval_shape(
        partial(Decoder(moe).apply, method="hidden"), {"params": param_shapes(moe)}, jnp.zeros((2, 12), int)
    )
    assert aux["run_0"]["layer_0"]["mlp"]["load_X"].shape == (2, 6)
