"""Four-bit experts are read as the numbers that they stand for."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from archzoo import MODELS, Decoder, load_hf, save_hf
from archzoo.zoo.mxfp4 import dequantize_mxfp4

SPEC = MODELS["gpt-oss-nano"].replace(
    vocab=40, width=64, depth=2, **{"attention.heads": 2, "attention.kv_heads": 1, "mlp.ffn": 32, "mlp.experts": 4}
)


def packed(seed: int, experts: int, out: int, width: int) -> tuple[Any, Any]:
    """Random blocks and scales, every number of four bits among them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (experts, out, width // 32, 16), dtype=np.uint8)
    return blocks, rng.integers(118, 126, blocks.shape[:-1], dtype=np.uint8)


def number(bits: int) -> float:
    """A number of four bits by the definition: sign, exponent of bias 1, a bit of mantissa; subnormal at exponent 0."""
    sign, exponent, mantissa = -1.0 if bits & 8 else 1.0, bits >> 1 & 3, bits & 1
    return sign * (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1))


def plain(blocks: Any, scales: Any) -> Any:
    """float64 [X, I, O], a number at a time."""
    experts, out, count, _ = blocks.shape
    weights = np.empty((experts, 32 * count, out))
    for x, o, n, i in np.ndindex(experts, out, count, 32):
        byte = int(blocks[x, o, n, i // 2])
        weights[x, 32 * n + i, o] = number(byte >> 4 if i % 2 else byte & 15) * 2.0 ** (int(scales[x, o, n]) - 127)
    return weights


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_every_number_is_that_of_the_definition(dtype: Any) -> None:
    blocks, scales = packed(0, 2, 6, 96)
    found = dequantize_mxfp4(blocks, scales, dtype)
    assert (found.dtype, found.shape) == (dtype, (2, 96, 6))
    np.testing.assert_array_equal(found.astype(np.float64), plain(blocks, scales))
    assert set(np.unique(np.concatenate([blocks & 15, blocks >> 4]))) == set(range(16))


def test_a_scale_of_all_bits_is_no_number() -> None:
    blocks, scales = packed(1, 1, 1, 64)
    scales[0, 0, 1] = 255
    found = dequantize_mxfp4(blocks, scales)
    assert np.isnan(found[0, 32:].astype(np.float32)).all()
    assert np.isfinite(found[0, :32].astype(np.float32)).all()


@pytest.mark.parametrize(
    ("blocks", "scales", "words"),
    [
        ((2, 6, 3, 16), (2, 6, 2), r"up_scales: expected uint8 \[2, 6, 3\], .*got uint8 \[2, 6, 2\]"),
        ((2, 6, 3, 8), (2, 6, 3), r"up_blocks: expected uint8 \[experts, out, in / 32, 16\], got uint8 \[2, 6, 3, 8\]"),
        ((2, 6, 48), (2, 6, 3), r"up_blocks: .*got uint8 \[2, 6, 48\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(blocks: Any, scales: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dequantize_mxfp4(np.zeros(blocks, np.uint8), np.zeros(scales, np.uint8), name="up")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A directory as gpt-oss is published, experts of four bits and all else bfloat16; its tensors as plain numbers."""
    directory = tmp_path_factory.mktemp("gpt_oss")
    params = Decoder(SPEC).init(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    save_hf(directory, SPEC, jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params))

    tensors = load_file(directory / "model.safetensors")
    stored = dict(tensors)
    for seed, name in enumerate(name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))):
        experts, width, out = tensors[name].shape
        blocks, scales = packed(seed, experts, out, width)
        del stored[name]
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        tensors[name] = plain(blocks, scales).astype(ml_dtypes.bfloat16)
    save_file(stored, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return directory, tensors


def test_a_published_checkpoint_is_read_and_written_as_bfloat16(
    published: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:

    directory, tensors = published
    spec, params = load_hf(directory)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(ml_dtypes.bfloat16)}
    save_hf(tmp_path, spec, params)
    again = load_file(tmp_path / "model.safetensors")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name].view(np.uint16), tensor.view(np.uint16))
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_blocks_without_their_scales_are_refused(published: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:

    stored = load_file(published[0] / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj"
    (tmp_path / "config.json").write_text((published[0] / "config.json").read_text())
    save_file({key: value for key, value in stored.items() if key != f"{name}_scales"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"tensor '{name}' is missing"):
        load_hf(tmp_path)
    save_file(stored | {f"{name}_scales": stored[f"{name}_scales"][:, 1:]}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"tensor '{name}'_scales: expected uint8"):
        load_hf(tmp_path)


@pytest.mark.live
def test_the_numbers_are_those_of_transformers() -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = packed(2, 3, 8, 64)
    theirs = convert_moe_packed_tensors(torch.as_tensor(blocks), torch.as_tensor(scales))
    found = dequantize_mxfp4(blocks, scales)
    assert tuple(theirs.shape) == found.shape
    np.testing.assert_array_equal(found.astype(np.float32), theirs.float().numpy())
