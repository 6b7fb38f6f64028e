"""Modules of multi-token prediction with names of their own: found, read and written bit for bit, equal to NumPy's from
the published tensors, and trained by their loss.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from archzoo import FAMILIES, MODELS, Decoder, Execution, load_hf, save_hf, spec_from_hf, spec_to_hf
from archzoo.layers.decoder import param_shapes, unembed
from archzoo.layers.mtp import MTP, handed_on
from archzoo.layers.norms import rms_norm
from archzoo.layers.unchained import Unchained
from archzoo.layers.unnormed import Unnormed
from archzoo.train.loss import Losses, loss_and_aux, measure
from archzoo.zoo.weights import copies, entries

from . import agreement, drafting
from .cases import CASES, Case

Array = np.ndarray[Any, Any]

SUPER = {"mtp_hybrid_override_pattern": "*E", "moe_latent_size": 12}
CHOSEN = {
    "mimo_v2_flash_published_names": {"num_nextn_predict_layers": 2},
    "ernie4_5_moe_tied": {"num_nextn_predict_layers": 1},
    "qwen3_next_every_fourth": {"num_nextn_predict_layers": 1},
    "qwen3_5_published": {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False},
    "qwen3_5_moe_published": {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False},
    "longcat_flash_zero_experts": {"num_nextn_predict_layers": 1},
    "nemotron_h_experts": {"num_nextn_predict_layers": 1} | SUPER,
}
PREDICTING = [
    Case(name=case.name, config={**case.config, **CHOSEN[case.name]}) for case in CASES if case.name in CHOSEN
]
MIMO = next(case for case in PREDICTING if case.family == "mimo_v2_flash")
SILENT = [case for case in PREDICTING if case.family != "qwen3_5_moe_text"]

ATTENTION = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
MLP = [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]
OF_QWEN = [f"mtp.{name}.weight" for name in ("fc", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")]
OF_QWEN += [
    f"mtp.layers.0.{name}" for name in (*NORMS, *ATTENTION, "self_attn.q_norm.weight", "self_attn.k_norm.weight")
]
SHARED = ["mlp.gate.weight", "mlp.shared_expert_gate.weight"]
SHARED += [f"mlp.shared_expert.{name}_proj.weight" for name in ("gate", "up", "down")]


def of_experts(prefix: str, count: int, *names: str) -> list[str]:
    return [f"{prefix}experts.{e}.{name}_proj.weight" for e in range(count) for name in names]


OF_QWEN_MOE = OF_QWEN + [f"mtp.layers.0.{name}" for name in SHARED]
OF_QWEN_MOE += of_experts("mtp.layers.0.mlp.", 6, "gate", "up", "down")
OF_MIMO = [f"{name}.weight" for name in ("enorm", "hnorm", "eh_proj", "final_layernorm", "input_layernorm")]
OF_MIMO += ["pre_mlp_layernorm.weight", *ATTENTION, "self_attn.attention_sink_bias", *MLP]
LATENT = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
OF_LONGCAT = ["enorm.m.weight", "hnorm.m.weight", "eh_proj.weight", *NORMS]
OF_LONGCAT += [f"self_attn.{name}.weight" for name in LATENT] + [f"transformer_layer.{name}" for name in MLP]
MIXER = ("gate", "shared_experts.up_proj", "shared_experts.down_proj", "fc1_latent_proj", "fc2_latent_proj")
OF_NEMOTRON = [f"mtp.layers.0.{name}.weight" for name in ("enorm", "hnorm", "eh_proj", "norm")]
OF_NEMOTRON += [f"mtp.layers.0.mixer.{name}_proj.weight" for name in "qkvo"]
OF_NEMOTRON += [f"mtp.layers.1.{name}.weight" for name in ("norm", "final_layernorm")]
OF_NEMOTRON += [f"mtp.layers.1.mixer.{name}.weight" for name in MIXER]
OF_NEMOTRON += ["mtp.layers.1.mixer.gate.e_score_correction_bias", *of_experts("mtp.layers.1.mixer.", 8, "up", "down")]

NAMES = {
    "ernie4_5_moe": [f"model.mtp_{name}.0.weight" for name in ("emb_norm", "hidden_norm", "linear_proj")]
    + [f"model.mtp_block.0.{name}" for name in (*NORMS, *ATTENTION, *MLP)],
    "longcat_flash": [f"model.mtp.layers.0.{name}" for name in OF_LONGCAT]
    + ["model.mtp.norm.weight", "model.mtp.embed_tokens.weight"],
    "mimo_v2_flash": [f"model.mtp.layers.{m}.{name}" for m in range(2) for name in OF_MIMO],
    "nemotron_h": OF_NEMOTRON,
    "qwen3_5_moe_text": OF_QWEN_MOE,
    "qwen3_5_text": OF_QWEN + [f"mtp.layers.0.{name}" for name in MLP],
    "qwen3_next": OF_QWEN_MOE,
}
"""Of the modules in checkpoints of the cases, as vLLM's loaders name them."""


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def written(case: Case, directory: Path, **config: Any) -> Path:
    """A published checkpoint of the case; None takes a field out of its config."""
    shown = {key: value for key, value in {**case.config, **config}.items() if key not in config or value is not None}
    spec, rows = spec_from_hf(case.config), FAMILIES[case.family].weights
    tensors = case.weights({name: entry.shape for name, entry in entries(spec, rows).items()})
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(shown))
    tensors |= {name: tensors[of] for name, of in copies(spec, rows).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


# --- files -----------------------------------------------------------------------------------------------------------


@by_name(PREDICTING)
def test_modules_have_the_published_names_and_come_back_bit_for_bit(case: Case, tmp_path: Path) -> None:
    directory = written(case, tmp_path / "published")
    alone = set(spec_names(case, None))
    assert set(load_file(directory / "model.safetensors")) - alone == set(NAMES[case.family])
    assert agreement.round_trip(directory, tmp_path / "again") == []
    spec, params = load_hf(directory)
    assert {name for name in params if name.startswith("mtp_")} == {f"mtp_{k}" for k in range(spec.mtp.depth)}
    assert spec_from_hf(spec_to_hf(spec.replace(hf=spec.hf.__class__(family=case.family)), 5)).mtp == spec.mtp


def spec_names(case: Case, mtp: Any) -> list[str]:
    spec = spec_from_hf(case.config).replace(mtp=mtp)
    return [*entries(spec, FAMILIES[case.family].weights)]


@by_name(SILENT)
def test_modules_that_the_config_does_not_count_are_found_in_the_tensors(case: Case, tmp_path: Path) -> None:
    field = FAMILIES[case.family].counted
    directory = written(case, tmp_path / "published", **{field: None})
    assert spec_from_hf(directory).mtp is None
    spec, params = load_hf(directory)
    expected = load_hf(written(case, tmp_path / "counted"))
    assert (spec, spec.mtp) == (expected[0], expected[0].mtp)
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])
    save_hf(tmp_path / "again", spec, params)
    assert agreement.tensor_differences(directory, tmp_path / "again") == []
    assert set(agreement.field_differences(directory, tmp_path / "again")) <= {field, "mtp_hybrid_override_pattern"}
    assert load_hf(directory, ignore=("mtp.*", "model.mtp*"))[0].mtp is None


def test_a_model_whose_experts_are_fused_and_its_modules_not_is_read(tmp_path: Path) -> None:
    """As Qwen3.5's larger models are published."""
    case = next(case for case in PREDICTING if case.family == "qwen3_5_moe_text")
    directory = written(case, tmp_path / "apart")
    expected, tensors = load_hf(directory)[1], load_file(directory / "model.safetensors")
    for layer in range(case.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp.experts."
        gate, up, down = (
            np.stack([tensors.pop(f"{prefix}{e}.{name}_proj.weight") for e in range(case.config["num_experts"])])
            for name in ("gate", "up", "down")
        )
        tensors |= {f"{prefix}gate_up_proj": np.concatenate([gate, up], axis=1), f"{prefix}down_proj": down}
    save_file(tensors, directory / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_hf(directory)[1], expected)


@by_name([MIMO])
def test_of_a_module_that_lacks_a_tensor_that_is_named(case: Case, tmp_path: Path) -> None:
    directory = written(case, tmp_path / "published", num_nextn_predict_layers=None)
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.mtp.layers.1.eh_proj.weight"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensor 'model\.mtp\.layers\.1\.eh_proj\.weight' is missing"):
        load_hf(directory)


def test_a_module_that_no_page_maps_is_refused_by_name_and_may_be_ignored(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "dots1_two_shared")
    directory = written(case, tmp_path / "published")
    tensors = load_file(directory / "model.safetensors")
    extra = {f"model.mtp_{name}.0.weight": np.ones(3, np.float32) for name in ("emb_norm", "hidden_norm")}
    save_file(tensors | extra, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"'model\.mtp_emb_norm\.0\.weight' is not mapped.*ignore=\('model\.mtp\*',\)"):
        load_hf(directory)
    jax.tree.map(
        np.testing.assert_array_equal, load_hf(directory, ignore=("model.mtp*",))[1], load_hf_of(tensors, directory)
    )


def load_hf_of(tensors: dict[str, Array], directory: Path) -> Any:
    save_file(tensors, directory / "model.safetensors")
    return load_hf(directory)[1]


# --- mathematics -----------------------------------------------------------------------------------------------------


@by_name(PREDICTING)
def test_their_logits_equal_numpy_from_the_published_tensors(case: Case, tmp_path: Path) -> None:
    directory = written(case, tmp_path / "published")
    spec, params = load_hf(directory)
    tensors = {name: tensor.astype(np.float64) for name, tensor in load_file(directory / "model.safetensors").items()}
    tokens = case.tokens().astype(np.int32)
    state, found = drafted(spec, params, tokens)
    embedding = tensors["backbone.embeddings.weight" if case.family == "nemotron_h" else "model.embed_tokens.weight"]
    head = tensors.get("lm_head.weight", embedding)
    for k, logits in enumerate(found, start=1):
        for row, line in enumerate(tokens):
            token, before = embedding[line[k:]], np.asarray(state[row, :-k], np.float64)
            hidden = drafting.MODULES[case.family](case.config, tensors, k - 1, token, before)
            assert agreement.error(np.asarray(logits[row, :-k]), hidden @ head.T) < 1e-4


@cache
def _drafting(spec: Any) -> Any:
    def run(params: Any, tokens: Any) -> Any:
        model, variables = Decoder(spec), {"params": params}
        hidden, aux = model.apply(variables, tokens, method="hidden")
        state = handed_on(hidden, aux)
        predicted, _ = model.apply(variables, tokens, state, method="predict")
        return hidden, state, [unembed(spec, params, at, Execution()) for at in predicted]

    return jax.jit(run)


def drafted(spec: Any, params: Any, tokens: Array) -> tuple[Array, list[Array]]:
    """What the modules read of the model, and their logits."""
    hidden, state, logits = _drafting(spec)(params, tokens)
    if isinstance(spec.mtp, Unchained | Unnormed):  # before the norm that gives what the head reads
        again = rms_norm(state, params["final_norm"]["scale_D"], spec.final_norm.eps)
        np.testing.assert_allclose(again, hidden, rtol=1e-5, atol=1e-5)
        assert np.abs(state - hidden).max() > 0.1
    else:
        np.testing.assert_array_equal(state, hidden)
    return np.asarray(state), logits


@pytest.mark.parametrize(
    "case",
    [case if case is MIMO else pytest.param(case, marks=pytest.mark.slow) for case in PREDICTING],
    ids=lambda c: c.name,
)
def test_their_loss_is_finite_and_moves_each_of_their_parameters(case: Case) -> None:
    spec = spec_from_hf(case.config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, jnp.float32), param_shapes(spec))
    tokens = jnp.asarray(case.tokens(), jnp.int32)
    ones = jnp.ones_like(tokens)
    batch = {"tokens": tokens, "targets": jnp.roll(tokens, -1, axis=1), "segment_ids": ones, "weights": ones * 1.0}

    def loss(modules: Any, params: Any) -> Any:
        whole = {**params, **modules}
        return loss_and_aux(whole, batch, measure(batch), spec=spec, execution=Execution(), losses=Losses(mtp=0.3))

    modules = {name: params.pop(name) for name in [*params] if name.startswith("mtp_")}
    (total, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(modules, params)
    assert np.isfinite(total)
    assert 0 < sums.mtp < np.inf
    for k in range(spec.mtp.depth):
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient[f"mtp_{k}"]):
            moved = np.abs(leaf).max() > 0
            assert moved or path[-1].key == "bias_X", f"mtp_{k}{jax.tree_util.keystr(path)}"  # a router's own rule


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_the_modules_of_published_models_have_their_sizes() -> None:
    """From the shapes of the tensors: the pair's projection, the attention, the MLP, and norms."""
    d, heads, kv, e, v, ffn = 4096, 64, 8, 192, 128, 16_384
    mimo = 2 * d * d + d * (heads * e + kv * e + kv * v) + heads * v * d + heads + 3 * d * ffn + 5 * d
    d, heads, kv, e, ffn, count = 2048, 16, 2, 256, 512, 512
    attention = d * (2 * heads * e + 2 * kv * e) + heads * e * d + 2 * e
    qwen3_next = 2 * d * d + attention + (count + 1) * 3 * d * ffn + d * count + d + 5 * d
    for name, modules in (("mimo-v2-flash", 3 * mimo), ("qwen3-next-80b-a3b", qwen3_next)):
        spec = MODELS[name]
        assert spec.param_count(mtp=True) - spec.param_count() == modules
    assert type(MODELS["mimo-v2-flash"].mtp) is Unchained
    assert type(MODELS["qwen3-next-80b-a3b"].mtp) is MTP
    assert round(MODELS["mimo-v2-flash"].param_count() / 1e9) == 309
    named = MODELS["nemotron3-super-120b-a12b"]
    assert (round(named.param_count() / 1e9), round(named.active_param_count() / 1e9)) == (121, 13)
