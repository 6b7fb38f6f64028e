"""Every case of the parity table against what transformers made of it: logits, greedy tokens, and the way there and
back.

The goldens are written by write_goldens.py; nothing here needs torch.
"""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from archzoo import Spec, load_hf, save_hf, spec_from_hf, spec_to_hf
from archzoo.layers.decoder import Origin

from . import agreement
from .cases import BATCH, CASES, FIRST, GOLDENS, LENGTH, ONE_DIALECT, PROMPT, TOLERANCE, Case, tolerance

Array = np.ndarray[Any, Any]


class Loaded(NamedTuple):
    """A case, its golden, and archzoo's reading of its published checkpoint in `directory`."""

    case: Case
    golden: Mapping[str, Any]
    directory: Path
    spec: Spec
    params: Any

    def logits(self) -> Array:
        raw = base64.b64decode(self.golden["logits"])
        return np.frombuffer(raw, "<f4").reshape(BATCH, LENGTH, -1)


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id=case.name, marks=() if case in FIRST else pytest.mark.slow) for case in CASES],
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    case: Case = request.param
    golden = json.loads((GOLDENS / f"{case.name}.json").read_text())
    directory = tmp_path_factory.mktemp(case.name)
    case.write(directory, golden["tensors"])
    return Loaded(case, golden, directory, *load_hf(directory))


def test_the_goldens_are_those_of_the_table() -> None:
    assert {path.stem for path in GOLDENS.iterdir()} == {case.name for case in CASES}
    assert all(path.stat().st_size < 2**16 for path in GOLDENS.iterdir())


def test_the_golden_is_of_this_config_and_these_tokens(loaded: Loaded) -> None:
    assert loaded.golden["config"] == loaded.case.config
    assert loaded.golden["tokens"] == loaded.case.tokens().tolist()


def test_logits_equal_those_of_transformers(loaded: Loaded) -> None:
    found = agreement.logits(loaded.spec, loaded.params, loaded.case.tokens())
    assert agreement.error(found, loaded.logits()) < tolerance(loaded.golden["float64_difference"])


def test_greedy_tokens_equal_those_of_transformers(loaded: Loaded) -> None:
    prompts, tie = loaded.case.tokens()[:, :PROMPT], TOLERANCE * float(np.std(loaded.logits()))
    tokens, margins = np.asarray(loaded.golden["greedy"]), np.asarray(loaded.golden["margins"])
    found = agreement.greedy(loaded.spec, loaded.params, prompts, tokens, margins, tie)
    assert found.agreed == found.asked
    assert found.asked > tokens.size / 2


def test_the_checkpoint_comes_back_bit_for_bit_and_field_for_field(loaded: Loaded, tmp_path: Path) -> None:
    assert agreement.round_trip(loaded.directory, tmp_path / "again") == []


def test_the_count_of_parameters_is_that_of_the_checkpoint(loaded: Loaded) -> None:
    assert loaded.spec.param_count() == sum(int(np.prod(shape)) for shape in loaded.golden["tensors"].values())


@pytest.mark.parametrize("dialect", [4, 5])
def test_a_spec_that_forgot_its_config_is_written_in_either_dialect(loaded: Loaded, dialect: int) -> None:
    config = spec_to_hf(loaded.spec.replace(hf=Origin(family=loaded.case.family)), dialect)
    assert config["model_type"] == loaded.case.family
    assert "rope_theta" not in config or dialect == 4
    assert "rope_parameters" not in config or dialect == 5 or loaded.case.family in ONE_DIALECT
    again = spec_from_hf(config)
    assert again.layers == loaded.spec.layers
    assert again.replace(attention=loaded.spec.attention, mlp=loaded.spec.mlp) == loaded.spec


@pytest.mark.parametrize("case", [case for case in CASES if case.routed], ids=lambda c: c.name)
def test_fused_experts_are_read_and_written_one_by_one(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path / "published", json.loads((GOLDENS / f"{case.name}.json").read_text())["tensors"])
    (tmp_path / "fused").mkdir()
    (tmp_path / "fused" / "config.json").write_text(json.dumps(case.config))
    save_file(fuse(load_file(tmp_path / "published" / "model.safetensors")), tmp_path / "fused" / "model.safetensors")
    save_hf(tmp_path / "again", *load_hf(tmp_path / "fused"))
    assert agreement.tensor_differences(tmp_path / "published", tmp_path / "again") == []
    assert agreement.field_differences(tmp_path / "published", tmp_path / "again") == []


IN_MEMORY = {
    "block_sparse_moe": "mlp",
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
    "block_sparse_moe.router.layer": "block_sparse_moe.router",
    "block_sparse_moe.input_linear.weight": "block_sparse_moe.experts.gate_up_proj",
    "block_sparse_moe.output_linear.weight": "block_sparse_moe.experts.down_proj",
    "mlp.moe_statics": "mlp.gate.moe_statics",
}
"""Parts of the names that Mixtral and its heirs, Granite and ERNIE publish, and what transformers 5 calls them."""


OF_DEEPSEEK_V4 = {
    r"^head\.": "lm_head.",
    r"\.attn\.indexer\.compressor\.": ".attn.compressor.indexer.",
    r"\.attn\.indexer\.weights_proj": ".attn.compressor.indexer.scorer.weights_proj",
    r"\.attn\.indexer\.wq_b": ".attn.compressor.indexer.q_b_proj",
    r"\.attn_norm": ".input_layernorm",
    r"\.ffn_norm": ".post_attention_layernorm",
    r"\.hc_(attn|ffn)_": r".\1_hc.",
    r"\.q_norm": ".q_a_norm",
    r"(?<=\.)norm(?=\.weight)(?<=attn\.norm|ssor\.norm|exer\.norm)": "kv_norm",
    r"attn_sink": "sinks",
    r"\.ape$": ".position_bias",
    r"\.wkv\.": ".kv_proj.",
    r"\.wgate\.": ".gate_proj.",
    r"\.w([qo])_([ab])\.": r".\1_\2_proj.",
    r"\.gate\.bias": ".gate.e_score_correction_bias",
    r"\.attn\.": ".self_attn.",
    r"\.ffn\.": ".mlp.",
}
"""The names of DeepSeek-V4, in order of replacement."""


def fuse(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The layout that transformers 5 keeps in memory: gate_up_proj [experts, 2 ffn, width], down_proj [experts, width,
    ffn].
    """
    parts = r"block_sparse_moe(\.router\.layer|\.(in|out)put_linear\.weight)?|\bw[123]\b|mlp\.moe_statics"
    tensors = {re.sub(parts, lambda m: IN_MEMORY[m[0]], name): tensor for name, tensor in tensors.items()}
    if any(name.endswith(".hc_fn") for name in tensors):
        for old, new in OF_DEEPSEEK_V4.items():
            tensors = {re.sub(old, new, name): tensor for name, tensor in tensors.items()}
    tensors = {name.replace("attention_sink_bias", "sinks"): tensor for name, tensor in tensors.items()}
    tensors = {name.replace("backbone.", "model."): tensor for name, tensor in tensors.items()}
    forget = r"(?<=self_attn\.)(f_[ab]_proj|dt_bias|A_log)"
    tensors = {re.sub(forget, r"forget_gate.\1", name): tensor for name, tensor in tensors.items()}
    single = [name for name in tensors if re.search(r"\.experts\.\d", name)]
    fused = {name: tensor for name, tensor in tensors.items() if name not in single and "_conv1d" not in name}
    for name in tensors:
        if name.endswith("q_conv1d.weight"):
            taps = [tensors[name.replace("q_conv1d", f"{part}_conv1d")] for part in "qkv"]
            fused[name.replace("q_conv1d", "conv1d")] = np.concatenate(taps)
    for prefix in sorted({name.partition(".experts.")[0] for name in single}):
        count = sum(name.startswith(f"{prefix}.experts.") and name.endswith(".up_proj.weight") for name in tensors)
        parts = {
            part: np.stack([tensors[f"{prefix}.experts.{e}.{part}_proj.weight"] for e in range(count)])
            for part in ("gate", "up", "down")
            if f"{prefix}.experts.0.{part}_proj.weight" in tensors
        }
        fused[f"{prefix}.experts.down_proj"] = parts["down"]
        if "gate" in parts:
            fused[f"{prefix}.experts.gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
        else:
            fused[f"{prefix}.experts.up_proj"] = parts["up"]
    return fused
