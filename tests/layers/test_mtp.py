"""Multi-token prediction equals float64 NumPy document by document, and the model neither needs nor pays for it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.accounting import axes, input_axes, is_matrix, is_predictor, leaves
from archzoo.layers.decoder import Decoder, Spec, document_positions, init_cache, param_shapes
from archzoo.layers.decoding import generate
from archzoo.layers.mtp import MTP, ahead, handed_on, reaches
from archzoo.layers.norms import RMSNorm
from archzoo.layers.unchained import Unchained
from archzoo.layers.unnormed import Unnormed
from archzoo.sharding.rules import Rules, make_mesh

from . import reference
from .conftest import DENSE, FULL, MODEL, MOE, SPECS, close, equations, extend, forward, params_of, tokens_of

LENGTH = 19
SEGMENTS = np.array([[1] * 7 + [2] * 8 + [3] * 4, [1] * 1 + [2] * 12 + [0] * 6, [1] * 19], np.int32)
PREDICTING = {name: SPECS[name].replace(mtp=MTP(depth=2)) for name in ("ring", "latent")}
OTHER = SPECS["full"].replace(mtp=MTP(attention=FULL, mlp=MOE, norm=RMSNorm(eps=1e-3)))
BEFORE = {kind.__name__: SPECS["full"].replace(mtp=kind(depth=2, mlp=DENSE)) for kind in (Unchained, Unnormed)}


@partial(jax.jit, static_argnames="spec")
def predict(spec: Spec, params: Any, tokens: Any, segments: Any = None) -> Any:
    model = Decoder(spec)
    hidden, of_model = model.apply({"params": params}, tokens, segments, method="hidden")
    state = handed_on(hidden, of_model)
    predicted, aux = model.apply({"params": params}, tokens, state, segments, method="predict")
    return state, predicted, aux


def module(spec: Spec, p: Any, token_LD: Any, hidden_LD: Any) -> Any:
    """Eqs. 21-22 on one document, whose hidden states stand k places before their tokens; before the last norm."""
    mtp, (block, attention, mlp) = spec.mtp, spec.layers[-1]
    assert mtp is not None
    norm, parts = mtp.norm or spec.final_norm, (mtp.attention or attention, mtp.mlp or mlp)
    pair = [reference.norm(norm, p[f"norm_{name}"], x) for name, x in (("token", token_LD), ("hidden", hidden_LD))]
    x = (np.concatenate(pair, axis=-1) @ reference.f64(p["w_ID"]))[None]
    positions, layer = np.arange(x.shape[1])[None], p["layer"]
    for name, part in zip(("attention", "mlp"), parts, strict=True):
        y = reference.norm(block.before, layer.get(f"{name}_before", {}), x)
        y = reference.layer(part, layer[name], y, positions, None)
        x = x + reference.norm(block.after, layer.get(f"{name}_after", {}), y)
    return x[0]


@pytest.mark.parametrize("spec", [*PREDICTING.values(), OTHER, *BEFORE.values()], ids=[*PREDICTING, "other", *BEFORE])
def test_modules_equal_float64_numpy_document_by_document(spec: Spec) -> None:
    params, tokens = params_of(spec), tokens_of(spec, 3, LENGTH)
    hidden, predicted, _ = predict(spec, params, tokens, SEGMENTS)
    assert spec.mtp is not None
    assert len(predicted) == spec.mtp.depth
    embedded = reference.f64(params["embed_VD"])[tokens] * spec.embedding_scale
    for row, document in ((0, 1), (0, 2), (0, 3), (1, 2), (2, 1)):
        (places,) = np.nonzero(SEGMENTS[row] == document)
        first = state = reference.f64(hidden)[row, places]
        for k, found in enumerate(predicted, start=1):
            own = {"final_norm": params["final_norm"], **params[f"mtp_{k - 1}"]}
            raw = module(spec, own, embedded[row, places[k:]], state[: len(places) - k])
            normed = reference.norm(spec.mtp.norm or spec.final_norm, own["final_norm"], raw)
            close(found[row, places[:-k]], normed, MODEL)
            state = {MTP: normed, Unnormed: raw, Unchained: first}[type(spec.mtp)]


def test_places_whose_token_is_in_another_document_are_padding() -> None:
    spec = PREDICTING["latent"]
    _, _, aux = predict(spec, params_of(spec), tokens_of(spec, 3, LENGTH), SEGMENTS)
    for k in (1, 2):
        real = sum(max(count - k, 0) for count in (7, 8, 4, 1, 12, 19))
        found = aux[f"mtp_{k - 1}"]["layer"]["mlp"]
        assert found["tokens"] == real
        assert found["load_X"].sum() == real * MOE.router.top_k


def test_what_is_ahead_ends_with_the_document() -> None:
    segments = jnp.array([[1, 1, 2, 2, 2, 0, 0]])
    np.testing.assert_array_equal(ahead(segments, 2), [[2, 2, 2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(reaches(segments, 1), [[1, 0, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(reaches(segments, 2), [[0, 0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(ahead(segments, 9), np.zeros((1, 7)))
    np.testing.assert_array_equal(document_positions(segments), [[0, 1, 0, 1, 2, 0, 1]])


def test_a_module_sees_no_further_than_its_own_token() -> None:
    """The gradient of one position's output by the embeddings of all: each position has a token of its own."""
    spec = PREDICTING["latent"]
    tokens, at = jnp.arange(LENGTH, dtype=jnp.int32)[None], 7

    @partial(jax.jit, static_argnums=1)
    def gradient(params: Any, k: int) -> Any:
        weights = jnp.cos(jnp.arange(spec.width))
        return jax.grad(lambda p: jnp.sum(predict(spec, p, tokens)[1][k][0, at] * weights))(params)["embed_VD"]

    for k in (0, 1):
        moved = np.abs(gradient(params_of(spec), k)).max(axis=-1) > 0
        assert moved[: at + k + 2].all()
        assert not moved[at + k + 2 :].any()


# --- the model without -----------------------------------------------------------------------------------------------


def test_the_model_neither_needs_nor_computes_them() -> None:
    spec, tokens = PREDICTING["latent"], tokens_of(PREDICTING["latent"], 2, LENGTH)
    alone, params = spec.replace(mtp=None), params_of(PREDICTING["latent"])
    own = {name: leaf for name, leaf in params.items() if not name.startswith("mtp_")}
    assert jax.tree.structure(own) == jax.tree.structure(param_shapes(alone))
    np.testing.assert_array_equal(forward(spec, own, tokens), forward(alone, own, tokens))
    counts = [
        len(list(equations(jax.make_jaxpr(partial(forward, s))(p, tokens).jaxpr)))
        for s, p in ((spec, params), (alone, own))
    ]
    assert counts[0] == counts[1]
    cache = init_cache(spec, 2, LENGTH, "float32")
    assert jax.tree.structure(cache) == jax.tree.structure(init_cache(alone, 2, LENGTH, "float32"))
    np.testing.assert_array_equal(extend(spec, own, tokens, cache)[0], extend(alone, own, tokens, cache)[0])
    prompts = tokens[:, :5].tolist()
    expected = generate(alone, own, prompts, max_new_tokens=6, stop=())
    np.testing.assert_array_equal(generate(spec, params, prompts, max_new_tokens=6, stop=()), expected)


def test_a_model_without_them_says_so() -> None:
    spec = SPECS["full"]
    with pytest.raises(ValueError, match=r"no multi-token prediction: spec\.mtp is None"):
        predict(spec, params_of(spec), tokens_of(spec, 1, 4))
    with pytest.raises(ValueError, match=r"MTP\.depth is 0: it must be positive"):
        MTP(depth=0)


# --- parameters ------------------------------------------------------------------------------------------------------


def test_counts_leave_them_out_unless_asked() -> None:
    spec = OTHER.replace(**{"mtp.depth": 3})
    alone = spec.replace(mtp=None)
    d, heads, kv, e = 16, 4, 2, 8
    attention = d * heads * e + 2 * d * kv * e + heads * e * d + 2 * e
    experts = (6 + 1) * 3 * d * 8 + d * 6 + 6
    each = 2 * d * d + 3 * d + attention + experts + 2 * d
    assert spec.param_count() == alone.param_count()
    assert spec.param_count(mtp=True) == alone.param_count() + 3 * each
    assert spec.active_param_count() == alone.active_param_count()
    assert spec.flops_per_token(9) == alone.flops_per_token(9)
    assert spec.cache_bytes(1, 9) == alone.cache_bytes(1, 9)


def test_they_follow_the_last_layer_where_they_do_not_say() -> None:
    spec = SPECS["mixed"].replace(mtp=MTP())
    assert spec.predictor == MTP(**spec.layers[-1]._asdict(), norm=spec.final_norm)
    assert spec.replace(**{"mlp[1].ffn": 20}).predictor.mlp.ffn == 20
    assert OTHER.predictor == MTP(attention=FULL, mlp=MOE, block=OTHER.block[0], norm=RMSNorm(eps=1e-3))
    assert Spec.from_json(OTHER.to_json()) == OTHER


def test_those_without_a_norm_of_their_own_have_no_parameters_of_one() -> None:
    found = {type(spec.mtp): param_shapes(spec)["mtp_1"] for spec in BEFORE.values()}
    assert found[Unchained].keys() - found[Unnormed].keys() == {"final_norm"}
    assert found[Unnormed].keys() == {"norm_token", "norm_hidden", "w_ID", "layer"}
    for spec in BEFORE.values():
        assert Spec.from_json(spec.to_json()) == spec
        assert all(None not in leaf.axes for leaf in leaves(spec) if is_predictor(leaf))


def test_their_parameters_belong_to_the_specs_that_declared_them() -> None:
    found = {"/".join(leaf.path[1:]): leaf for leaf in leaves(OTHER) if is_predictor(leaf)}
    assert found["w_ID"].axes == ("pair", "width")
    assert is_matrix(found["w_ID"])
    assert input_axes(found["w_ID"]) == (0,)
    assert found["w_ID"].owner == OTHER.predictor
    assert found["norm_token/scale_D"].axes == found["final_norm/scale_D"].axes == ("width",)
    assert found["layer/attention/wq_DKGE"].axes == ("width", "kv_heads", "q_per_kv", "head_dim")
    assert found["layer/attention/wq_DKGE"].owner == FULL
    assert found["layer/mlp/w_up_XFD"].owner == MOE
    assert found["layer/mlp/router/bias_X"].owner == MOE.router
    assert found["layer/attention_before/scale_D"].owner == OTHER.block[0]
    assert all(None not in leaf.axes for leaf in found.values())
    Rules().shardings(axes(OTHER), make_mesh(jax.devices()[:1], fsdp=1, tensor=1))


def test_each_module_starts_with_numbers_of_its_own() -> None:
    spec = SPECS["full"].replace(mtp=MTP(depth=2, mlp=DENSE))
    params = Decoder(spec).init(jax.random.key(0), None)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, param_shapes(spec))
    first, second = (params[f"mtp_{k}"]["w_ID"] for k in range(2))
    assert np.abs(first - second).max() > 0.1
    assert np.std(first) == pytest.approx(32**-0.5, rel=0.1)
    alone = Decoder(spec.replace(mtp=None)).init(jax.random.key(0), None)["params"]
    jax.tree.map(np.testing.assert_array_equal, {name: params[name] for name in alone}, alone)
