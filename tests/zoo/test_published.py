"""Published configs are the presets of their names and come back field for field; presets have the published sizes."""

import json
import math
from pathlib import Path

import pytest

from archzoo import FAMILIES, MODELS, spec_from_hf, spec_to_hf
from archzoo.zoo.weights import copies, entries

from .cases import ONE_DIALECT
from .published import DEEPSEEK_V3, GEMMA3_27B, GEMMA3_270M, KIMI_K2, PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_preset_of_its_name(name: str) -> None:
    spec, preset = spec_from_hf(PUBLISHED[name], text_only=True), MODELS[name]
    counted = FAMILIES[spec.hf.family].counted if spec.hf else ""
    if counted and counted not in PUBLISHED[name].get("text_config", PUBLISHED[name]):
        preset = preset.replace(mtp=None)  # such a checkpoint's own tensors tell
    assert (spec, spec.layers) == (preset.replace(attention=spec.attention, mlp=spec.mlp), preset.layers)


def test_the_smallest_gemma_is_its_preset_but_for_the_end_of_a_chat_turn() -> None:
    assert spec_from_hf(GEMMA3_270M) == MODELS["gemma3-270m"].replace(eos_ids=(1,))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "text_config" not in PUBLISHED[name]])
def test_a_published_config_comes_back_field_for_field_without_its_quantisation(name: str) -> None:
    config = {key: value for key, value in PUBLISHED[name].items() if key != "quantization_config"}
    if name == "kimi-k2":
        config["model_type"] = "deepseek_v3"
    assert spec_to_hf(spec_from_hf(PUBLISHED[name])) == config


def test_a_config_that_transformers_4_wrote_beside_a_layer_pattern_comes_back() -> None:
    assert spec_to_hf(spec_from_hf(GEMMA3_270M)) == GEMMA3_270M


def test_of_a_multimodal_config_the_text_config_comes_back() -> None:
    written = spec_to_hf(spec_from_hf(GEMMA3_27B, text_only=True))
    kept = {key: GEMMA3_27B[key] for key in ("eos_token_id", "torch_dtype", "transformers_version")}
    assert written == GEMMA3_27B["text_config"] | kept | {"architectures": ["Gemma3ForCausalLM"]}


@pytest.mark.parametrize("dialect", [4, 5])
@pytest.mark.parametrize("name", MODELS)
def test_every_preset_is_written_and_read_in_both_dialects(name: str, dialect: int) -> None:
    spec = MODELS[name]
    config = json.loads(json.dumps(spec_to_hf(spec, dialect)))
    assert "rope_theta" not in config or dialect == 4
    assert "rope_parameters" not in config or dialect == 5 or config["model_type"] in ONE_DIALECT
    read = spec_from_hf(config)
    assert read.layers == spec.layers
    assert read.replace(attention=spec.attention, mlp=spec.mlp, block=spec.block) == spec


def test_a_config_is_read_from_a_directory_or_a_file_as_from_a_dict(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    for place in (tmp_path, str(tmp_path), tmp_path / "config.json"):
        assert spec_from_hf(place) == MODELS["deepseek-v3"]


def test_sizes_are_the_published_ones() -> None:
    assert MODELS["llama3.1-8b"].param_count() == 8_030_261_248
    assert MODELS["deepseek-v3"].param_count() == 671_026_419_200
    assert round(MODELS["deepseek-v3"].active_param_count() / 1e9, 2) == 37.55


CHECKPOINTS = {
    "glm-4.7-flash": (9_703, 31_221_488_576),
    "kimi-linear-48b-a3b": (20_493, 49_122_681_728),
    "qwen3-next-80b-a3b": (75_944, 81_324_862_720),
    "qwen3.6-27b": (1_199, 27_781_427_952),
}
"""How many tensors and numbers the published checkpoint of a preset holds, modules of multi-token prediction and what
they repeat of the model included.
"""


def of_vision(width: int) -> tuple[int, int]:
    """Tensors and numbers of Qwen's vision model, which writes to a language model of this width."""
    d, ffn, places, patch, merged = 1152, 4304, 2304, 3 * 2 * 16 * 16, 4 * 1152
    block = (d * d + d) + (3 * d * d + 3 * d) + (d * ffn + ffn) + (ffn * d + d) + 4 * d
    merger = (merged * merged + merged) + (merged * width + width) + 2 * d
    return 27 * 12 + 6 + 3, 27 * block + merger + (patch * d + d) + places * d


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_preset_has_as_many_tensors_and_numbers_as_its_published_checkpoint(name: str) -> None:
    spec = MODELS[name]
    assert spec.hf is not None
    rows = FAMILIES[spec.hf.family].weights
    tensors, again = entries(spec, rows), copies(spec, rows)
    numbers = spec.param_count(mtp=True) + sum(math.prod(tensors[of].shape) for of in again.values())
    vision = of_vision(spec.width) if "vision_config" in PUBLISHED[name] else (0, 0)
    assert (len(tensors) + len(again) + vision[0], numbers + vision[1]) == CHECKPOINTS[name]


def test_the_largest_preset_has_every_tensor_and_number_of_its_published_checkpoint() -> None:
    spec = MODELS["kimi-k2"]
    tensors = entries(spec, FAMILIES["deepseek_v3"].weights)
    height, width = KIMI_K2["quantization_config"]["weight_block_size"]
    quantised = [entry.shape for entry in tensors.values() if "proj" in entry.name]
    scales = sum(-(-rows // height) * -(-columns // width) for rows, columns in quantised)
    rotary = spec.depth * 56  # one buffer of inverse frequencies a layer
    assert len(tensors) + len(quantised) + spec.depth == 139_644
    assert spec.param_count() + scales + rotary == 1_026_470_731_056
