"""The engine is strict: each refusal names file, tensor or field; each published layout is read as it is published."""

import json
import os
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from archzoo import FAMILIES, MODELS, Spec, load_hf, save_hf, spec_from_hf, spec_to_hf
from archzoo.layers.accounting import leaves
from archzoo.layers.block import pre_norm
from archzoo.layers.norms import LayerNorm, QKNorm, RMSNorm
from archzoo.layers.rope import Linear
from archzoo.zoo import huggingface
from archzoo.zoo.export_files import LazyTensor, write_checkpoint
from archzoo.zoo.tensors import RUN, aligned, open_checkpoint

from .cases import CASES, CONFIGS, GOLDENS, Case
from .cases.common import YARN
from .published import GEMMA3_4B

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]

LLAMA = "llama_plain"
TIED = "llama_gqa_llama3_tied"
GEMMA = "gemma3_remainder_linear"
QWEN = "qwen3_window_yarn"
MOE = "qwen3_moe_gqa"
DEEPSEEK = "deepseek_v3_kimi"


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def tensors_of(name: str) -> Tensors:
    """The published checkpoint of a case."""
    case = case_named(name)
    return case.weights(json.loads((GOLDENS / f"{name}.json").read_text())["tensors"])


def write(directory: Path, config: Any, *shards: Mapping[str, Array]) -> Path:
    """A Hugging Face directory; one shard is model.safetensors, several have no index."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    for i, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"part-{i}.safetensors"
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in shard.items()}, directory / file)
    return directory


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def equal(first: Any, second: Any) -> None:
    """Two trees are equal to the bit, types included."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), first, second)


# --- configs ---------------------------------------------------------------------------------------------------------


FIELDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown field": (LLAMA, {"sliding_chunk": 4}, "'sliding_chunk' (4) is unknown"),
    "activation": (LLAMA, {"hidden_act": "gelu"}, "'hidden_act' is 'gelu', which is not supported; supported: 'silu'"),
    "gemma activation": (GEMMA, {"hidden_activation": "relu"}, "'hidden_activation' is 'relu', which is not supported"),
    "dropout": (LLAMA, {"attention_dropout": 0.1}, "'attention_dropout' is 0.1, which is not supported"),
    "scores": (DEEPSEEK, {"scoring_func": "softmax"}, "'scoring_func' is 'softmax', which is not supported"),
    "selection": (DEEPSEEK, {"topk_method": "greedy"}, "'topk_method' is 'greedy', which is not supported"),
    "longrope": ("phi3_gqa", {"rope_scaling": {"type": "longrope"}}, "'rope_scaling.short_factor' is missing"),
    "yarn in phi3": ("phi3_gqa", {"rope_scaling": YARN}, "a phi3 stretches its rope by longrope only"),
    "logits": ("granite_gqa_tied", {"logits_scaling": 0}, "'logits_scaling' is 0"),
    "layers without rope": ("smollm3_every_fourth_tied", {"no_rope_layers": [1]}, "'no_rope_layers' must be 0 or 1"),
    "pattern of letters": (
        "exaone4_hybrid_gqa_llama3",
        {"layer_types": None},
        "'sliding_window_pattern' is 'LLLG'; it takes an integer",
    ),
    "sparse layers": (DEEPSEEK, {"moe_layer_freq": 2}, "'moe_layer_freq' is 2, which is not supported"),
    "latent bias": (DEEPSEEK, {"attention_bias": True}, "'attention_bias' is True, which is not supported"),
    "latent kv heads": (DEEPSEEK, {"num_key_value_heads": 2}, "'num_key_value_heads' is 2, which is not supported"),
    "no shared expert": (
        DEEPSEEK,
        {"n_shared_experts": 0},
        "'n_shared_experts' is 0; it takes an integer of at least 1",
    ),
    "softcap": (GEMMA, {"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' is 50.0, which is not supported"),
    "both ways": (GEMMA, {"use_bidirectional_attention": True}, "'use_bidirectional_attention' is True"),
    "windowed experts": (MOE, {"use_sliding_window": True}, "'use_sliding_window' is True, which is not supported"),
    "rope type": (
        LLAMA,
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "'rope_parameters.rope_type' is",
    ),
    "rope field": (LLAMA, {"rope_parameters": {"rope_type": "default", "twist": 1}}, "'rope_parameters.twist' (1)"),
    "flat rope": (GEMMA, {"rope_parameters": {"rope_type": "default"}}, "'rope_parameters.rope_type' ('default')"),
    "rope twice": (
        GEMMA,
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "different ropes; keep one",
    ),
    "layer kinds": (GEMMA, {"layer_types": ["chunked_attention"] * 8}, "'layer_types' must be 8 of"),
    "layer count": (GEMMA, {"layer_types": ["full_attention"] * 7}, "'layer_types' must be 8 of"),
    "window without size": (
        QWEN,
        {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 5},
        "'layer_types'",
    ),
    "missing": (LLAMA, {"vocab_size": None}, "'vocab_size' is missing"),
    "missing kv heads": (QWEN, {"num_key_value_heads": None}, "'num_key_value_heads' is missing"),
    "text for a number": (LLAMA, {"hidden_size": "64"}, "'hidden_size' is '64'; it takes an integer"),
    "fraction for an integer": (LLAMA, {"hidden_size": 64.0}, "'hidden_size' is 64.0; it takes an integer"),
    "boolean for an integer": (LLAMA, {"num_hidden_layers": True}, "'num_hidden_layers' is True; it takes an integer"),
    "text for a fraction": (LLAMA, {"rms_norm_eps": "1e-5"}, "'rms_norm_eps' is '1e-5'; it takes a finite number"),
    "integer for a boolean": (LLAMA, {"tie_word_embeddings": 1}, "'tie_word_embeddings' is 1; it takes true or false"),
    "text for a token": (LLAMA, {"eos_token_id": "2"}, "'eos_token_id' is '2'; it takes a token id or a list"),
    "integer for a list": (GEMMA, {"layer_types": 8}, "'layer_types' is 8; it takes a list"),
    "integer for dense layers": (MOE, {"mlp_only_layers": 1}, "'mlp_only_layers' is 1; it takes a list"),
    "text for an object": (LLAMA, {"rope_parameters": "default"}, "'rope_parameters' is 'default'; it takes an object"),
    "text for a window": (QWEN, {"sliding_window": "6"}, "'sliding_window' is '6'; it takes an integer"),
    "no heads": (LLAMA, {"num_attention_heads": 0}, "'num_attention_heads' is 0; it takes an integer of at least 1"),
    "heads that do not divide": (LLAMA, {"num_key_value_heads": 3}, "Attention.heads is 8: it must be a multiple of"),
    "odd rope": (LLAMA, {"head_dim": 7}, "Rope.dim is 7: rope rotates pairs"),
    "too few experts": (MOE, {"num_experts_per_tok": 9}, "MoE.router.top_k is 9: it cannot exceed experts, which is 6"),
}


@pytest.mark.parametrize(("name", "changes", "words"), FIELDS.values(), ids=FIELDS)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    config = CONFIGS[name] | changes
    assert words in refusal(spec_from_hf, config)
    file = write(tmp_path, config) / "config.json"
    for call in (spec_from_hf, load_hf):
        message = refusal(call, tmp_path)
        assert words in message
        assert str(file) in message


def test_an_unknown_field_may_be_ignored_and_is_not_written_back() -> None:
    config = CONFIGS[LLAMA]
    spec = spec_from_hf(config | {"sliding_chunk": 4}, ignore=("sliding_chunk",))
    assert spec == spec_from_hf(config)
    assert spec_to_hf(spec) == config


@pytest.mark.parametrize(
    ("kind", "nearest"), [("lama", "llama"), ("qwen3moe", "qwen3_moe"), ("deepseek_3", "deepseek_v3"), (None, "llama")]
)
def test_an_unsupported_model_type_is_refused_with_the_nearest(kind: Any, nearest: str) -> None:
    message = refusal(spec_from_hf, {"model_type": kind})
    assert f"model_type {kind!r} is not supported" in message
    assert nearest in message


def test_kimi_k2_is_read_as_deepseek_v3_and_written_as_that() -> None:
    spec = spec_from_hf(CONFIGS[DEEPSEEK] | {"model_type": "kimi_k2"})
    assert spec == spec_from_hf(CONFIGS[DEEPSEEK])
    assert spec_to_hf(spec) == CONFIGS[DEEPSEEK]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "JSON"),
        (b'{"model_type": "llama"', "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'["llama"]', "is a list, not an object"),
        (b'{"model_type": "llama", "model_type": "olmo2"}', "'model_type' is there twice"),
    ],
)
def test_a_broken_config_is_refused_by_its_file(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(text)
    for call in (spec_from_hf, load_hf):
        message = refusal(call, tmp_path)
        assert words in message
        assert str(tmp_path / "config.json") in message


def test_a_directory_without_a_config_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"config\.json|nowhere"):
            load_hf(place)


# --- tensors ---------------------------------------------------------------------------------------------------------


NORM = "model.layers.1.input_layernorm.weight"


def changed(name: str, tensor: Array) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensor}


def dropped(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


WRONG: dict[str, tuple[Callable[[Tensors], Tensors], tuple[str, ...]]] = {
    "unmapped": (
        changed("model.layers.0.extra.weight", np.ones(3, np.float32)),
        ("'model.layers.0.extra.weight' is not",),
    ),
    "missing": (dropped(NORM), (f"tensor '{NORM}' is missing; the config asks for it",)),
    "several missing": (dropped(NORM, "lm_head.weight"), (" is missing (and 1 more)",)),
    "wrong shape": (changed(NORM, np.ones(63, np.float32)), (f"'{NORM}' has shape (63,); the config asks for (64,)",)),
    "transposed": (
        changed("model.layers.0.mlp.up_proj.weight", np.ones((64, 32), np.float32)),
        ("'model.layers.0.mlp.up_proj.weight' has shape (64, 32); the config asks for (32, 64)",),
    ),
    "integers": (changed(NORM, np.ones(64, np.int64)), (f"'{NORM}' has type int64; expected one of float32, bf",)),
    "doubles": (changed(NORM, np.ones(64)), (f"'{NORM}' has type float64; expected one of",)),
    "float8 without scales": (
        changed(NORM, np.ones(64, ml_dtypes.float8_e4m3fn)),
        (f"'{NORM}' has type float8_e4m3fn; expected one of",),
    ),
    "two types in one parameter": (
        changed(NORM, np.ones(64, ml_dtypes.bfloat16)),
        (f"'{NORM}' has type bfloat16, but 'model.layers.0.input_layernorm.weight' of the same", "pass a dtype"),
    ),
    "scales without quantisation": (
        changed("lm_head.weight_scale_inv", np.ones((1, 1), np.float32)),
        ("'lm_head.weight_scale_inv' is not mapped",),
    ),
    "layer beyond the depth": (
        changed("model.layers.2.eh_proj.weight", np.ones((4, 4), np.float32)),
        ("'model.layers.2.eh_proj.weight' is not mapped", "beyond the model's depth", "ignore=('model.layers.2.*',)"),
    ),
}


def save_any(directory: Path, config: Any, tensors: Tensors) -> Path:
    """A directory by archzoo's own writer, which has every type."""
    lazy = [
        LazyTensor(name=name, shape=tensor.shape, dtype=tensor.dtype, read=partial(np.asarray, tensor))
        for name, tensor in tensors.items()
    ]
    write_checkpoint(directory, lazy, files={"config.json": json.dumps(config)})
    return directory


@pytest.mark.parametrize(("edit", "words"), WRONG.values(), ids=WRONG)
def test_a_tensor_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, edit: Callable[[Tensors], Tensors], words: tuple[str, ...]
) -> None:
    message = refusal(load_hf, save_any(tmp_path / "model", CONFIGS[LLAMA], edit(tensors_of(LLAMA))))
    assert str(tmp_path / "model") in message
    assert all(word in message for word in words), message


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(LLAMA)
    message = refusal(load_hf, write(tmp_path, CONFIGS[LLAMA], tensors, {NORM: tensors[NORM]}))
    assert f"tensor '{NORM}' is in part-0.safetensors too" in message


def test_tensors_may_be_ignored_by_pattern(tmp_path: Path) -> None:
    extra = {f"model.layers.0.probe.{i}": np.ones(2, np.float32) for i in range(2)}
    write(tmp_path, CONFIGS[LLAMA], tensors_of(LLAMA) | extra)
    assert "'model.layers.0.probe.0' is not mapped to any parameter (and 1 more)" in refusal(load_hf, tmp_path)
    spec, _ = load_hf(tmp_path, ignore=("*.probe.*",))
    assert spec == spec_from_hf(CONFIGS[LLAMA])


def test_a_dtype_holds_for_all_parameters_whatever_the_tensors_are(tmp_path: Path) -> None:
    tensors = tensors_of(LLAMA)
    mixed = changed(NORM, tensors[NORM].astype(ml_dtypes.bfloat16))(tensors)
    _, params = load_hf(save_any(tmp_path / "mixed", CONFIGS[LLAMA], mixed), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    norms = params["run_0"]["layer_0"]["attention_before"]["scale_D"]
    np.testing.assert_array_equal(norms[1], tensors[NORM].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", ["float64", "int32", "float8_e4m3fn", "nonsense"])
def test_a_dtype_that_parameters_cannot_have_is_refused(tmp_path: Path, dtype: str) -> None:
    message = refusal(load_hf, write(tmp_path, CONFIGS[LLAMA]), dtype=dtype)
    assert f"dtype {dtype!r} is not one of float32, bfloat16, float16" in message


# --- published layouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_float_type_is_kept_and_comes_back_bit_for_bit(tmp_path: Path, kind: Any) -> None:
    tensors = {name: tensor.astype(kind) for name, tensor in tensors_of(LLAMA).items()}
    spec, params = load_hf(save_any(tmp_path / "model", CONFIGS[LLAMA], tensors))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(kind)}
    save_hf(tmp_path / "again", spec, params)
    again = open_checkpoint(tmp_path / "again")
    assert all(again.read(name).tobytes() == tensor.tobytes() for name, tensor in tensors.items())
    assert len(again) == len(tensors)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == str(np.dtype(kind))


def test_a_sharded_checkpoint_is_read_and_written(tmp_path: Path) -> None:
    spec, params = load_hf(write(tmp_path / "one", CONFIGS[LLAMA], tensors_of(LLAMA)))
    save_hf(tmp_path / "many", spec, params, max_shard_bytes=20_000)
    shards = list((tmp_path / "many").glob("model-*-of-*.safetensors"))
    assert len(shards) > 3
    assert (tmp_path / "many" / "model.safetensors.index.json").is_file()
    equal(load_hf(tmp_path / "many")[1], params)


def quantised(tensor: Array, block: tuple[int, int]) -> tuple[Array, Array, Array]:
    """(float8 [out, in], its scales, what they stand for in bfloat16), by the definition: a scale a block."""
    rows, columns = tensor.shape
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    scales, weight, value = np.zeros(grid, np.float32), np.zeros_like(tensor), np.zeros_like(tensor)
    for i, j in np.ndindex(grid):
        at = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
        scales[i, j] = np.abs(tensor[at]).max() / 448
        weight[at] = (tensor[at] / scales[i, j]).astype(ml_dtypes.float8_e4m3fn)
        value[at] = weight[at] * scales[i, j]
    return weight.astype(ml_dtypes.float8_e4m3fn), scales, value.astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("block", [(128, 128), (16, 16), (5, 7)])
def test_block_float8_is_dequantised_to_bfloat16(tmp_path: Path, block: tuple[int, int]) -> None:
    # As DeepSeek-V3 is published: projections float8 with scales, the router's bias float32, all else bfloat16.
    plain, stored = {}, {}
    for name, tensor in tensors_of(DEEPSEEK).items():
        if "_proj" in name:
            stored[name], stored[f"{name}_scale_inv"], plain[name] = quantised(tensor, block)
        else:
            kind = np.float32 if name.endswith("e_score_correction_bias") else ml_dtypes.bfloat16
            stored[name] = plain[name] = tensor.astype(kind)
    quantization = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": list(block),
    }
    config = CONFIGS[DEEPSEEK] | {"torch_dtype": "bfloat16"}
    directory = save_any(tmp_path / "float8", config | {"quantization_config": quantization}, stored)
    spec, params = load_hf(directory)
    equal(params, load_hf(save_any(tmp_path / "plain", config, plain))[1])
    save_hf(tmp_path / "again", spec, params)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8"},
        {"quant_method": "fp8", "weight_block_size": None},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "weight_block_size": ["128", "128"]},
        "fp8",
    ],
    ids=str,
)
def test_other_quantisations_are_refused(tmp_path: Path, quantization: Any) -> None:
    write(tmp_path, CONFIGS[LLAMA] | {"quantization_config": quantization}, tensors_of(LLAMA))
    message = refusal(load_hf, tmp_path)
    assert "'quantization_config'" in message
    assert "which is not supported" in message
    assert str(tmp_path) in message


def test_scales_that_do_not_fit_their_weight_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = tensors_of(LLAMA)
    weight, scales, _ = quantised(tensors[name], (16, 16))
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    config = CONFIGS[LLAMA] | {"quantization_config": quantization}
    wrong = tensors | {name: weight, f"{name}_scale_inv": scales[:-1]}
    message = refusal(load_hf, save_any(tmp_path / "wrong", config, wrong), dtype="float32")
    assert f"{name}'_scale_inv: expected [2, 4]" in message
    unscaled = changed(name, weight)(tensors)
    message = refusal(load_hf, save_any(tmp_path / "unscaled", config, unscaled))
    assert f"'{name}' has type float8_e4m3fn" in message


VISION = {
    "vision_tower.vision_model.post_layernorm.weight": np.ones(4, np.float32),
    "multi_modal_projector.mm_input_projection_weight": np.ones((4, 8), np.float32),
}


def multimodal() -> tuple[dict[str, Any], Tensors, Tensors]:
    """google/gemma-3-4b-pt made tiny: its config with three sizes changed, and the tensors of its language model, by
    their names in a text-only model and by those in the published wrapper.
    """
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    config = GEMMA3_4B | {"text_config": GEMMA3_4B["text_config"] | sizes}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (262_208, 8), "model.norm.weight": (8,)}
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= {
            f"{layer}{norm}.weight": (8,)
            for norm in (
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            )
        }
        shapes |= {f"{layer}self_attn.{norm}_norm.weight": (256,) for norm in "qk"}
        shapes |= {f"{layer}mlp.{part}_proj.weight": (16, 8) for part in ("gate", "up")}
        shapes |= {f"{layer}self_attn.{part}_proj.weight": (1024, 8) for part in "kv"}
        shapes |= {f"{layer}self_attn.q_proj.weight": (2048, 8), f"{layer}self_attn.o_proj.weight": (8, 2048)}
        shapes[f"{layer}mlp.down_proj.weight"] = (8, 16)
    text = {name: np.full(shape, i, ml_dtypes.bfloat16) for i, (name, shape) in enumerate(shapes.items())}
    return config, text, {f"language_model.{name}": tensor for name, tensor in text.items()}


def test_of_a_multimodal_checkpoint_the_language_model_is_taken_and_the_rest_named(tmp_path: Path) -> None:
    config, text, wrapped = multimodal()
    plain_config = config["text_config"] | {"eos_token_id": [1, 106], "torch_dtype": "bfloat16"}
    expected = load_hf(save_any(tmp_path / "text", plain_config, text))
    published = save_any(tmp_path / "published", config, wrapped | VISION)
    of_five = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in text.items()}
    saved = save_any(tmp_path / "five", config, of_five | {f"model.{name}": VISION[name] for name in VISION})
    for directory, prefix in ((published, ""), (saved, "model.")):
        assert "model_type 'gemma3' is multimodal; pass text_only=True" in refusal(load_hf, directory)
        words = f"leaves out 2 tensors under {prefix}vision_tower, {prefix}multi_modal_projector"
        with pytest.warns(UserWarning, match=words):
            spec, params = load_hf(directory, text_only=True)
        assert spec == expected[0]
        equal(params, expected[1])


def test_other_tensors_of_a_multimodal_checkpoint_and_doubles_are_refused(tmp_path: Path) -> None:
    config, text, wrapped = multimodal()
    audio = save_any(tmp_path / "audio", config, wrapped | {"audio_tower.weight": np.ones(2, np.float32)})
    assert "'audio_tower.weight' is not mapped" in refusal(load_hf, audio, text_only=True)
    name = "model.norm.weight"
    double = save_any(tmp_path / "double", config, wrapped | {f"language_model.{name}": text[name], name: text[name]})
    message = refusal(load_hf, double, text_only=True)
    assert f"'language_model.{name}'" in message
    assert f"'{name}' are the same one" in message


def test_a_multimodal_config_whose_text_part_is_no_object_is_refused() -> None:
    message = refusal(spec_from_hf, GEMMA3_4B | {"text_config": "gemma3_text"}, text_only=True)
    assert "'text_config' is 'gemma3_text'; it takes an object" in message


def test_buffers_of_inverse_frequencies_are_passed_over(tmp_path: Path) -> None:
    tensors = tensors_of(LLAMA)
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(2)}
    _, params = load_hf(write(tmp_path / "old", CONFIGS[LLAMA], tensors | buffers))
    equal(params, load_hf(write(tmp_path / "new", CONFIGS[LLAMA], tensors))[1])


def test_a_tied_head_is_accepted_only_if_it_is_the_embedding(tmp_path: Path) -> None:
    tensors = tensors_of(TIED)
    embedding = tensors["model.embed_tokens.weight"]
    with_head = write(tmp_path / "same", CONFIGS[TIED], tensors | {"lm_head.weight": embedding})
    equal(load_hf(with_head)[1], load_hf(write(tmp_path / "none", CONFIGS[TIED], tensors))[1])
    other = embedding.copy()
    other[-1, -1] += 1
    message = refusal(load_hf, write(tmp_path / "other", CONFIGS[TIED], tensors | {"lm_head.weight": other}))
    assert "'lm_head.weight' differs from the embedding, but the config ties them (tie_word_embeddings)" in message


def test_layers_of_multi_token_prediction_are_refused_if_there_and_may_be_ignored(tmp_path: Path) -> None:
    config = CONFIGS[DEEPSEEK] | {"num_nextn_predict_layers": 1}
    tensors = tensors_of(DEEPSEEK)
    spec, params = load_hf(write(tmp_path / "without", config, tensors))
    assert spec == spec_from_hf(CONFIGS[DEEPSEEK])
    predicting = {
        "model.layers.2.embed_tokens.weight": tensors["model.embed_tokens.weight"],
        "model.layers.2.enorm.weight": np.ones(64, np.float32),
        "model.layers.2.input_layernorm.weight": np.ones(64, np.float32),
    }
    directory = write(tmp_path / "with", CONFIGS[DEEPSEEK], tensors | predicting)
    message = refusal(load_hf, directory)
    assert "'model.layers.2." in message
    assert "(and 2 more)" in message
    assert "multi-token prediction" in message
    assert "ignore=('model.layers.2.*',)" in message
    equal(load_hf(directory, ignore=("model.layers.2.*",))[1], params)


# --- export ----------------------------------------------------------------------------------------------------------


WRITTEN: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "window": ("gemma3-1b", {f"attention[{i}].window": 256 for i in range(5)}, {"sliding_window": 256}),
    "depth": ("gemma3-27b", {"depth": 7}, {"num_hidden_layers": 7}),
    "softcap": ("gemma3-1b", {"logit_softcap": 30.0}, {"final_logit_softcapping": 30.0}),
    "window everywhere": ("qwen3-0.6b", {"attention.window": 128}, {"use_sliding_window": True, "sliding_window": 128}),
    "untied": ("qwen3-0.6b", {"tied": False}, {"tie_word_embeddings": False}),
    "stretched rope": ("olmo2-7b", {"attention.rope.scaling": Linear(factor=2.0)}, {"rope_theta": 500_000.0}),
    "no groups": ("deepseek-v3", {"mlp.router.groups": None}, {"n_group": 1, "topk_group": 1}),
    "no query rank": ("deepseek-v3", {"attention.q_rank": None}, {"q_lora_rank": None}),
    "divided logits": ("granite3.0-8b", {"logit_scale": 1 / 4.9}, {"logits_scaling": 4.9}),
    "no positions": ("smollm3-3b", {"attention.rope": None}, {"no_rope_layers": [0] * 36}),
    "multi-head": ("llama3.1-8b", {"attention.kv_heads": 32}, {"num_key_value_heads": 32}),
}


@pytest.mark.parametrize(("name", "changes", "fields"), WRITTEN.values(), ids=WRITTEN)
def test_an_ablation_that_the_family_can_hold_is_written(
    name: str, changes: dict[str, Any], fields: dict[str, Any]
) -> None:
    spec = MODELS[name].replace(changes)
    assert spec != MODELS[name]
    config = spec_to_hf(spec)
    assert config | fields == config
    assert spec_from_hf(config).layers == spec.layers


ALONE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "width of the MLP": (LLAMA, {"mlp.ffn": 48}, {"intermediate_size": 48}),
    "rope": (QWEN, {"attention.rope.scaling": None}, {"rope_scaling": None}),
    "choices": (MOE, {"mlp.router.top_k": 3}, {"num_experts_per_tok": 3}),
    "scale": (DEEPSEEK, {"mlp.router.scale": 1.5}, {"routed_scaling_factor": 1.5}),
    "base of the local rope": (
        GEMMA,
        {f"attention[{i}].rope.theta": 50.0 for i in range(5)},
        {"rope_local_base_freq": 50.0},
    ),
}


@pytest.mark.parametrize(("name", "changes", "fields"), ALONE.values(), ids=ALONE)
def test_an_ablation_of_a_loaded_model_changes_its_field_alone(
    name: str, changes: dict[str, Any], fields: dict[str, Any]
) -> None:
    assert spec_to_hf(spec_from_hf(CONFIGS[name]).replace(changes)) == CONFIGS[name] | fields


MIXTURE = MODELS["qwen3-moe-nano"].mlp[0]

ABLATIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "experts in llama": ("llama3.1-8b", {"mlp": MIXTURE}, "a llama has no such layer ('MoE' object has no attribute"),
    "experts in olmo": ("olmo2-7b", {"mlp": MIXTURE}, "a olmo2 cannot have mlp of layer 0 = 'MoE'"),
    "query-key norm": ("llama3.1-8b", {"attention.qk_norm": QKNorm()}, "attention.qk_norm"),
    "window": ("olmo2-7b", {"attention.window": 512}, "attention.window of layer 0 = 512: it would be read as None"),
    "placement": ("olmo2-7b", {"block": pre_norm(RMSNorm())}, "block.before"),
    "two windows": (
        "gemma3-1b",
        {"attention[0].window": 64},
        "attention.window of layer 1 = 512: it would be read as 64",
    ),
    "kind of norm": ("llama3.1-8b", {"final_norm": LayerNorm()}, "final_norm"),
    "other eps": (
        "llama3.1-8b",
        {"final_norm.eps": 1e-3},
        "block.before.eps of layer 0 = 1e-05: it would be read as 0.001",
    ),
    "partial rope": (
        "qwen3-0.6b",
        {"attention.rope.dim": 64},
        "attention.rope.dim of layer 0 = 64: it would be read as 128",
    ),
    "no rope": ("llama3.1-8b", {"attention.rope": None}, "a llama has no such layer"),
    "interleaved rope": (
        "llama3.1-8b",
        {"attention.rope.interleaved": True},
        "attention.rope.interleaved of layer 0 = True",
    ),
    "some biases": (
        "qwen3-0.6b",
        {"attention.bias": "qkv"},
        "attention.bias of layer 0 = 'qkv': it would be read as 'qkvo'",
    ),
    "activation": (
        "qwen3-0.6b",
        {"mlp.activation": "gelu"},
        "mlp.activation of layer 0 = 'gelu': it would be read as 'silu'",
    ),
    "no shared expert": ("deepseek-v3", {"mlp.shared": None}, "'n_shared_experts' is 0"),
    "router scores": ("deepseek-v3", {"mlp.router.score": "softmax"}, "'scoring_func' is 'softmax'"),
    "embedding scale": ("llama3.1-8b", {"embedding_scale": 2.0}, "embedding_scale = 2.0: it would be read as 1.0"),
    "softcap": ("llama3.1-8b", {"logit_softcap": 30.0}, "logit_softcap = 30.0: it would be read as None"),
}


@pytest.mark.parametrize(("name", "changes", "words"), ABLATIONS.values(), ids=ABLATIONS)
def test_an_ablation_that_hugging_face_cannot_hold_is_refused_by_its_first_difference(
    name: str, changes: dict[str, Any], words: str
) -> None:
    message = refusal(spec_to_hf, MODELS[name].replace(changes))
    assert message.startswith("Hugging Face cannot hold this model: ")
    assert words in message
    assert words in refusal(save_hf, "/nowhere", MODELS[name].replace(changes), {})


def test_a_model_of_no_family_is_refused_with_all_of_them() -> None:
    message = refusal(spec_to_hf, MODELS["llama3-nano"].replace(hf=None, **{"attention.scores.softcap": 8.0}))
    assert f"it is none of {', '.join(FAMILIES)}" in message


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The spec and parameters of a small model."""
    return load_hf(write(tmp_path_factory.mktemp("tiny"), CONFIGS[LLAMA], tensors_of(LLAMA)))


MISFITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "missing": (lambda p: {k: v for k, v in p.items() if k != "head_DV"}, "parameter head_DV of the spec is missing"),
    "still wrapped": (lambda p: {"params": p}, "of the spec is missing"),
    "extra": (lambda p: p | {"probe": {"w_D": p["embed_VD"]}}, "parameter probe/w_D is not in the spec"),
    "wrong shape": (
        lambda p: p | {"head_DV": p["head_DV"].T},
        "parameter head_DV has shape (80, 64); the spec asks for (64, 80)",
    ),
    "wrong type": (
        lambda p: p | {"head_DV": p["head_DV"].astype(int)},
        "parameter head_DV has type int32; expected one of",
    ),
}


@pytest.mark.parametrize(("edit", "words"), MISFITS.values(), ids=MISFITS)
def test_parameters_that_do_not_fit_the_spec_are_refused_by_name(
    tmp_path: Path, tiny: tuple[Spec, Any], edit: Callable[[Any], Any], words: str
) -> None:
    spec, params = tiny
    assert words in refusal(save_hf, tmp_path / "out", spec, edit(params))
    assert not (tmp_path / "out").exists()


def test_parameters_of_several_types_that_one_tensor_joins_are_refused(tmp_path: Path) -> None:
    spec, params = load_hf(write(tmp_path, CONFIGS[DEEPSEEK], tensors_of(DEEPSEEK)))
    attention = params["run_0"]["layer_0"]["attention"]
    attention["wk_CHN"] = attention["wk_CHN"].astype(jnp.bfloat16)
    message = refusal(save_hf, tmp_path / "out", spec, params)
    assert "'model.layers.0.self_attn.kv_b_proj.weight' joins parameters of several types" in message


class Tokenizer:
    def save_pretrained(self, directory: str) -> None:
        (Path(directory) / "tokenizer.json").write_text("{}")


def test_an_export_holds_what_generation_needs(tmp_path: Path, tiny: tuple[Spec, Any]) -> None:
    save_hf(tmp_path / "out", *tiny, tokenizer=Tokenizer())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": [2, 5]}


# --- memory ----------------------------------------------------------------------------------------------------------


def test_import_and_export_hold_the_parameters_and_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 4096, "num_hidden_layers": 4, "vocab_size": 16384}
    spec = spec_from_hf(CONFIGS[DEEPSEEK] | sizes | {"moe_intermediate_size": 4096, "n_routed_experts": 4})
    params = {leaf.path: np.ones(leaf.shape, np.float32) for leaf in leaves(spec)}
    save_hf(tmp_path / "model", spec, huggingface._tree(params))
    total = sum(array.nbytes for array in params.values())
    largest = max(entry.size for entry in open_checkpoint(tmp_path / "model").entries.values())
    assert total > 8 * largest
    del params
    load_hf(tmp_path / "model")  # so that what is compiled is compiled

    places: list[int] = []

    def watched(shape: tuple[int, ...], dtype: Any) -> Array:
        array = aligned(shape, dtype)
        places.append(array.ctypes.data)
        return array

    monkeypatch.setattr(huggingface, "aligned", watched)
    slack = 2**20 + (os.cpu_count() or 1) * RUN
    tracemalloc.start()
    try:
        spec, loaded = load_hf(tmp_path / "model")
        held, host_in = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        save_hf(tmp_path / "again", spec, loaded)
        host_out = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sorted(leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(loaded)) == sorted(places)
    assert host_in <= total + largest + slack
    assert host_out <= held + largest + slack


def test_imported_parameters_may_be_donated_and_outlive_each_other(tmp_path: Path) -> None:
    directory = write(tmp_path, CONFIGS[LLAMA], tensors_of(LLAMA))
    expected = jax.tree.map(np.array, load_hf(directory)[1])
    first, second = load_hf(directory)[1], load_hf(directory)[1]
    doubled = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree), donate_argnums=0)(first)
    del first
    equal(jax.tree.map(lambda leaf: np.asarray(leaf) / 2, doubled), expected)
    equal(jax.tree.map(np.asarray, second), expected)
