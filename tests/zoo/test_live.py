"""The parity table against the installed transformers, both ways, and the size of every preset.

Needs the parity extra: `pytest -m live tests/zoo`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from archzoo import MODELS, Spec, load_hf, save_hf, spec_to_hf
from archzoo.layers.decoder import Origin

from . import agreement
from .cases import CASES, CONFIGS, FIRST, GOLDENS, NEW, PROMPT, TOLERANCE, Case

pytestmark = pytest.mark.live

HELD = ("e_score_correction_bias", "layer_scalar", "act_fn.beta", "act_fn.eps", "tid2eid")
"""Buffers of transformers that checkpoints hold like parameters."""


class Loaded(NamedTuple):
    """A case as transformers and archzoo read it from `directory`."""

    case: Case
    directory: Path
    model: Any
    spec: Spec
    params: Any


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' side of the comparison; importing it needs torch."""
    from . import reference

    return reference


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id=case.name, marks=() if case in FIRST else pytest.mark.slow) for case in CASES],
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, reference: Any) -> Loaded:
    case: Case = request.param
    directory = tmp_path_factory.mktemp(case.name)
    case.write(directory, reference.published_shapes(case.config))
    return Loaded(case, directory, reference.load(directory), *load_hf(directory))


def test_the_golden_is_of_the_same_tensors(loaded: Loaded) -> None:
    golden = json.loads((GOLDENS / f"{loaded.case.name}.json").read_text())
    tensors = load_file(loaded.directory / "model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == golden["tensors"]


def test_logits_and_greedy_tokens_are_equal(loaded: Loaded, reference: Any) -> None:
    tokens = loaded.case.tokens()
    theirs = reference.logits(loaded.model, tokens)
    assert agreement.error(agreement.logits(loaded.spec, loaded.params, tokens), theirs) < TOLERANCE
    best, margins = reference.greedy(loaded.model, tokens[:, :PROMPT], NEW)
    tie = TOLERANCE * float(np.std(theirs))
    found = agreement.greedy(loaded.spec, loaded.params, tokens[:, :PROMPT], best, margins, tie)
    assert found.agreed == found.asked
    assert found.asked > best.size / 2


@pytest.mark.parametrize("dialect", [4, 5])
def test_an_export_in_either_dialect_is_the_same_model(
    loaded: Loaded, reference: Any, tmp_path: Path, dialect: int
) -> None:
    origin = Origin(family=loaded.case.family, dialect=dialect)
    save_hf(tmp_path, loaded.spec.replace(hf=origin), loaded.params)
    again, tokens = reference.load(tmp_path), loaded.case.tokens()
    np.testing.assert_array_equal(reference.logits(again, tokens), reference.logits(loaded.model, tokens))


@pytest.mark.parametrize("layout", ["published", "fused"])
def test_what_transformers_saves_is_the_same_model_and_comes_back(loaded: Loaded, tmp_path: Path, layout: str) -> None:
    loaded.model.save_pretrained(tmp_path / "theirs", save_original_format=layout == "published")
    names = set(load_file(tmp_path / "theirs" / "model.safetensors"))
    fused = loaded.case.fused or (layout == "fused" and loaded.case.routed)
    assert any(name.endswith((".experts.gate_up_proj", ".experts.up_proj")) for name in names) == fused
    spec, params = load_hf(tmp_path / "theirs")
    assert spec == loaded.spec
    jax.tree.map(np.testing.assert_array_equal, params, loaded.params)
    save_hf(tmp_path / "ours", spec, params)
    assert agreement.field_differences(tmp_path / "theirs", tmp_path / "ours") == []
    assert agreement.tensor_differences(loaded.directory, tmp_path / "ours") == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_shards_come_back_bit_for_bit(
    loaded: Loaded, reference: Any, tmp_path: Path, dtype: str
) -> None:
    reference.load(loaded.directory, dtype).save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    assert agreement.round_trip(tmp_path / "theirs", tmp_path / "ours") == []


def test_the_language_model_of_a_saved_multimodal_one_is_read(reference: Any, tmp_path: Path) -> None:
    text = CONFIGS["gemma3_remainder_linear"]
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    hf = reference.library()
    sizes = {"image_size": 28, "patch_size": 14, "vision_use_head": False}
    config = hf.Gemma3Config(text_config=dict(text), vision_config=vision | sizes, mm_tokens_per_image=4)
    model = hf.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="text_only leaves out .* tensors under .*vision_tower"):
        spec, params = load_hf(tmp_path, text_only=True)
    tokens = np.arange(20).reshape(2, 10)
    theirs = reference.logits(model, tokens)
    assert agreement.error(agreement.logits(spec, params, tokens), theirs) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_a_preset_is_as_large_as_transformers_makes_it(reference: Any, name: str) -> None:
    import torch

    with torch.device("meta"):
        model = reference.build(spec_to_hf(MODELS[name]))
    buffers = [buffer for path, buffer in model.named_buffers() if path.endswith(HELD)]
    assert MODELS[name].param_count() == sum(tensor.numel() for tensor in [*model.parameters(), *buffers])
