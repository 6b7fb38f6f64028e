"""Multi-token prediction is read and written as published checkpoints hold it, or read without where there is none."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from archzoo import FAMILIES, MODELS, Decoder, load_hf, save_hf, spec_from_hf
from archzoo.layers.mtp import MTP
from archzoo.zoo.weights import copies, entries

from . import agreement
from .cases import CASES, GOLDENS, Case

Array = np.ndarray[Any, Any]
NAMES = (
    "deepseek_v3_groups_yarn",
    "deepseek_v3_halves_no_query_rank",
    "deepseek_v32_groups_yarn",
    "glm4_moe_air",
    "glm4_moe_lite_flash",
)
CHOSEN = [case for case in CASES if case.name in NAMES]


def with_modules(case: Case, directory: Path, depth: int = 2, **changed: Array) -> Path:
    """A published checkpoint of the case with so many modules, tensors replaced by the end of their names."""
    case = Case(name=case.name, config={**case.config, "num_nextn_predict_layers": depth})
    spec = spec_from_hf(case.config)
    shapes = {name: entry.shape for name, entry in entries(spec, FAMILIES[case.family].weights).items()}
    case.write(directory, shapes)
    tensors = load_file(directory / "model.safetensors")
    tensors |= {name: tensors[of] for name, of in copies(spec, FAMILIES[case.family].weights).items()}
    for end, tensor in changed.items():
        (name,) = (name for name in tensors if name.endswith(end.replace("__", ".")))
        tensors[name] = tensor
    rewrite(directory, tensors)
    return directory


def rewrite(directory: Path, tensors: dict[str, Array]) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def names_of(case: Case) -> set[str]:
    """The names of the golden's checkpoint, which has no modules."""
    return set(json.loads((GOLDENS / f"{case.name}.json").read_text())["tensors"])


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_modules_have_the_published_names_and_come_back_bit_for_bit(case: Case, tmp_path: Path) -> None:
    directory = with_modules(case, tmp_path / "published")
    spec, params = load_hf(directory)
    assert spec.mtp == MTP(depth=2)
    assert {"mtp_0", "mtp_1"} <= params.keys()
    last, depth = f"model.layers.{spec.depth - 1}.", spec.depth
    own = {"eh_proj", "enorm", "hnorm", "shared_head.norm", "shared_head.head", "embed_tokens"}
    parts = {name.removeprefix(last) for name in names_of(case) if name.startswith(last)}
    parts |= {f"{name}.weight" for name in own}
    expected = names_of(case) | {f"model.layers.{depth + k}.{part}" for k in range(2) for part in parts}
    assert set(load_file(directory / "model.safetensors")) == expected
    assert agreement.round_trip(directory, tmp_path / "again") == []


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_a_checkpoint_without_modules_is_read_without_and_comes_back(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path / "saved", json.loads((GOLDENS / f"{case.name}.json").read_text())["tensors"])
    assert spec_from_hf(tmp_path / "saved").mtp == MTP()
    with pytest.warns(UserWarning, match="no tensors of multi-token prediction, of which the config counts 1"):
        spec, params = load_hf(tmp_path / "saved")
    assert spec.mtp is None
    assert not any(name.startswith("mtp_") for name in params)
    save_hf(tmp_path / "again", spec, params)
    assert agreement.field_differences(tmp_path / "saved", tmp_path / "again") == []
    assert agreement.tensor_differences(tmp_path / "saved", tmp_path / "again") == []


def test_the_embedding_and_head_again_may_be_left_out_but_not_differ(tmp_path: Path) -> None:
    case = CHOSEN[0]
    directory = with_modules(case, tmp_path / "whole", depth=1)
    whole = load_file(directory / "model.safetensors")
    spec, params = load_hf(directory)
    for end in ("embed_tokens.weight", "shared_head.head.weight"):
        name = f"model.layers.{spec.depth}.{end}"
        rewrite(directory, {n: tensor for n, tensor in whole.items() if n != name})
        jax.tree.map(np.testing.assert_array_equal, load_hf(directory)[1], params)
        other = whole[name].copy()
        other[-1, -1] += 1
        rewrite(directory, whole | {name: other})
        with pytest.raises(ValueError, match=rf"model\.safetensors: tensor '{name}' differs from 'l?m.*', which"):
            load_hf(directory)
        jax.tree.map(np.testing.assert_array_equal, load_hf(directory, ignore=(name,))[1], params)


def test_a_part_of_a_module_is_refused_by_what_is_missing_and_may_be_ignored(tmp_path: Path) -> None:
    directory = with_modules(CHOSEN[0], tmp_path, depth=1)
    tensors = load_file(directory / "model.safetensors")
    layer = f"model.layers.{spec_from_hf(directory).depth}."
    rewrite(directory, {name: tensor for name, tensor in tensors.items() if name != f"{layer}eh_proj.weight"})
    with pytest.raises(ValueError, match=rf"tensor '{layer}eh_proj\.weight' is missing; the config asks for it"):
        load_hf(directory)
    with pytest.warns(UserWarning, match="read without it"):
        assert load_hf(directory, ignore=(f"{layer}*",))[0].mtp is None


def test_counts_are_read_in_either_spelling_and_must_agree() -> None:
    config = {key: value for key, value in CHOSEN[0].config.items() if key != "num_nextn_predict_layers"}
    assert spec_from_hf(config).mtp is None
    assert spec_from_hf(config | {"num_nextn_predict_layers": 3}).mtp == MTP(depth=3)
    assert spec_from_hf(config | {"num_mtp_layers": 3}).mtp == MTP(depth=3)
    with pytest.raises(ValueError, match="'num_mtp_layers' is 2, which is not supported; supported: 1"):
        spec_from_hf(config | {"num_nextn_predict_layers": 1, "num_mtp_layers": 2})


def test_the_module_of_deepseek_v3_has_the_published_size() -> None:
    width, heads, ffn, experts = 7168, 128, 2048, 256
    queries = width * 1536 + 1536 + 1536 * heads * (128 + 64)
    keys = width * (512 + 64) + 512 + 512 * heads * (128 + 128)
    attention = queries + keys + heads * 128 * width
    mlp = (experts + 1) * 3 * width * ffn + width * experts + experts
    module = 2 * width * width + attention + mlp + 5 * width
    spec = MODELS["deepseek-v3"]
    assert spec.mtp == MTP()
    assert spec.param_count() == 671_026_419_200
    assert spec.param_count(mtp=True) == 671_026_419_200 + module
    assert round(module / 1e9, 1) == 11.6
    assert MODELS["kimi-k2"].mtp is None


@pytest.mark.live
@pytest.mark.parametrize(
    "case", [case for case in CHOSEN if case.family in ("deepseek_v3", "glm4_moe")], ids=lambda case: case.name
)
def test_modules_are_those_that_transformers_drafts_with(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers.cache_utils import DynamicCache
    from transformers.modeling_layers import MtpModel

    from . import reference

    directory = with_modules(case, tmp_path)
    spec, params = load_hf(directory)
    # It knows them by the depth of the published models.
    patterns = [rf"model\.layers\.{spec.depth + k}\..*" for k in range(2)]
    kind = getattr(reference.library(), case.config["architectures"][0])
    monkeypatch.setattr(kind, "_keys_to_ignore_on_load_unexpected", patterns)
    model = reference.load(directory)
    drafting = MtpModel.from_pretrained(model).eval()
    tokens, decoder = case.tokens().astype(np.int32), Decoder(spec)
    hidden, _ = decoder.apply({"params": params}, tokens, method="hidden")
    predicted, _ = decoder.apply({"params": params}, tokens, hidden, method="predict")
    with torch.no_grad():
        state = model.model(torch.tensor(tokens, dtype=torch.long)).last_hidden_state
        for k, found in enumerate(predicted, start=1):
            ids = torch.tensor(tokens[:, k:], dtype=torch.long)
            positions = torch.arange(k, tokens.shape[1])[None].expand(tokens.shape[0], -1)
            state = drafting.forward_layer(k - 1, state[:, : ids.shape[1]], positions, DynamicCache(), input_ids=ids)
            theirs = state.numpy()
            assert agreement.error(np.asarray(found[:, :-k]), theirs) < 1e-4
