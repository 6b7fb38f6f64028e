"""DeepSeek-V4 as it lies on the Hub is the same model as in the names and types that transformers writes."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from archzoo import MODELS, load_hf, spec_from_hf
from archzoo.zoo.deepseek_v4_hub import as_written
from archzoo.zoo.mxfp4 import FP4, dequantize_rows, unpack
from archzoo.zoo.registry import FAMILIES
from archzoo.zoo.tensors import open_checkpoint
from archzoo.zoo.weights import entries

from .published import DEEPSEEK_V4_FLASH

Array = NDArray[Any]
Tensors = dict[str, Array]

CONFIG = DEEPSEEK_V4_FLASH | {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_hash_layers": 1,
    "compress_ratios": [0, 4, 128, 0],
    "num_attention_heads": 4,
    "head_dim": 16,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 24,
    "o_groups": 2,
    "o_lora_rank": 20,
    "index_n_heads": 4,
    "index_head_dim": 8,
    "index_topk": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
    "hc_mult": 2,
    "vocab_size": 40,
    "expert_dtype": "fp4",
}
QUANTIZATION = DEEPSEEK_V4_FLASH["quantization_config"] | {"weight_block_size": [16, 16]}
PLAIN = {name: value for name, value in CONFIG.items() if name != "quantization_config"}

TOP = "embed.weight norm.weight head.weight hc_head_fn hc_head_base hc_head_scale"
LAYER = (
    "attn_norm.weight ffn_norm.weight hc_attn_fn hc_attn_base hc_attn_scale hc_ffn_fn hc_ffn_base hc_ffn_scale "
    "attn.wq_a.weight attn.q_norm.weight attn.wq_b.weight attn.wkv.weight attn.kv_norm.weight attn.wo_a.weight "
    "attn.wo_b.weight attn.attn_sink ffn.gate.weight ffn.shared_experts.w1.weight ffn.shared_experts.w2.weight "
    "ffn.shared_experts.w3.weight"
)
COMPRESSOR = "attn.compressor.wkv.weight attn.compressor.wgate.weight attn.compressor.ape attn.compressor.norm.weight"
INDEXER = (
    "attn.indexer.wq_b.weight attn.indexer.weights_proj.weight attn.indexer.compressor.wkv.weight "
    "attn.indexer.compressor.wgate.weight attn.indexer.compressor.ape attn.indexer.compressor.norm.weight"
)
BEYOND = ("ffn.gate.tid2eid", f"{COMPRESSOR} {INDEXER} ffn.gate.bias", f"{COMPRESSOR} ffn.gate.bias")
"""What the three layers have beside: a table, or a bias, and what compresses in the two ways."""

QUANTISED = re.compile(r".*\.(w[123]|wq_[ab]|wkv|wo_[ab])\.weight")
UNQUANTISED = re.compile(r".*compressor\..*")


def names_on_the_hub() -> set[str]:
    layers = {f"layers.{i}.{name}" for i, beyond in enumerate(BEYOND) for name in f"{LAYER} {beyond}".split()}
    experts = {f"layers.{i}.ffn.experts.{e}.w{k}.weight" for i in range(3) for e in range(3) for k in (1, 2, 3)}
    return {*TOP.split(), *layers, *experts}


def on_the_hub(name: str) -> str:
    """The published name of what transformers writes under `name`."""
    for old, new in (("embed_tokens", "embed"), ("hc_head.hc_", "hc_head_"), (".attn.norm.", ".attn.kv_norm.")):
        name = name.replace(old, new)
    return name.removeprefix("model.")


def save(directory: Path, config: Any, tensors: Mapping[str, Array]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


def random_tensors() -> Tensors:
    """What transformers would write: bfloat16, float32 where the published checkpoint has it, and a table."""
    rng, found = np.random.default_rng(0), {}
    for name, entry in entries(spec_from_hf(CONFIG), FAMILIES["deepseek_v4"].weights).items():
        wide = ("_sink", ".bias", ".ape", "_fn", "_base", "_scale")
        kind = np.float32 if name.endswith(wide) else ml_dtypes.bfloat16
        found[name] = rng.normal(size=entry.shape).astype(kind)
        if name.endswith("tid2eid"):
            found[name] = rng.integers(0, 3, entry.shape)
    return found


def number(bits: int) -> float:
    """A number of four bits by the definition: sign, exponent of bias 1, a bit of mantissa; subnormal at exponent 0."""
    sign, exponent, mantissa = -1.0 if bits & 8 else 1.0, bits >> 1 & 3, bits & 1
    return sign * (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1))


def of_four_bits(rng: Any, shape: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Random (int8 [out, in / 2], e8m0 [out, in / 32], what they stand for), a number at a time."""
    out, width = shape
    bits = rng.integers(0, 16, shape)
    exponents = rng.integers(118, 126, (out, width // 32))
    values = np.empty(shape)
    packed = np.zeros((out, width // 2), np.uint8)
    for o, i in np.ndindex(shape):
        values[o, i] = number(int(bits[o, i])) * 2.0 ** (int(exponents[o, i // 32]) - 127)
        packed[o, i // 2] |= int(bits[o, i]) << (4 if i % 2 else 0)
    return packed.view(np.int8), exponents.astype(np.uint8).view(ml_dtypes.float8_e8m0fnu), values


def of_eight_bits(rng: Any, shape: tuple[int, int], wide: bool) -> tuple[Array, Array, Array]:
    """Random (float8 [out, in], a scale a block of 16 x 16, what they stand for)."""
    weight = rng.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)
    grid = (-(-shape[0] // 16), -(-shape[1] // 16))
    scales = rng.uniform(0.5, 2, grid).astype(np.float32) if wide else np.exp2(rng.integers(-6, 3, grid))
    values = np.empty(shape, np.float32)
    for o, i in np.ndindex(shape):
        values[o, i] = np.float32(weight[o, i]) * np.float32(scales[o // 16, i // 16])
    return weight, scales if wide else scales.astype(ml_dtypes.float8_e8m0fnu), values


def quantised(tensors: Tensors, base: bool = False) -> tuple[Tensors, Tensors]:
    """(tensors of the Hub, what they stand for in the names of transformers); base: experts of eight bits, and wide
    scales.
    """
    rng, stored, plain = np.random.default_rng(1), {}, {}
    for name, tensor in tensors.items():
        hub = on_the_hub(name)
        stored[hub] = plain[name] = tensor
        if is_quantised(hub):
            four = ".experts." in hub and not base
            weight, scales, values = of_four_bits(rng, tensor.shape) if four else of_eight_bits(rng, tensor.shape, base)
            stored |= {hub: weight, hub.removesuffix("weight") + "scale": scales}
            plain[name] = values.astype(ml_dtypes.bfloat16)
    return stored, plain


def is_quantised(name: str) -> bool:
    return bool(QUANTISED.fullmatch(name) and not UNQUANTISED.fullmatch(name))


def equal(first: Any, second: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), first, second)


COUNTS = {"four": 33_792, "eight": 375, "more": 853}
"""Tensors of DeepSeek-V4-Flash by their bits, scales aside, as a conversion of the whole checkpoint counted them."""

OF_A_MODULE = {"four": 3 * 256, "eight": 5 + 3 + 2, "more": 19}
"""Its module of multi-token prediction, which is among them: experts; attention, a shared expert and two projections;
norms of a layer (2), of attention (2) and of its own (3), sinks, three hyper-connections, router and bias.
"""


def test_the_published_model_has_as_many_tensors_of_four_of_eight_and_of_more_bits() -> None:
    names = entries(MODELS["deepseek-v4-flash"], FAMILIES["deepseek_v4"].weights)
    bits = ["more" if not is_quantised(name) else "four" if ".experts." in name else "eight" for name in names]
    assert {kind: bits.count(kind) + OF_A_MODULE[kind] for kind in COUNTS} == COUNTS


def test_the_names_of_the_hub_are_read_as_those_of_transformers(tmp_path: Path) -> None:
    tensors = random_tensors()
    hub = {on_the_hub(name): tensor for name, tensor in tensors.items()}
    assert hub.keys() == names_on_the_hub()
    spec, params = load_hf(save(tmp_path / "hub", PLAIN, hub))
    again, others = load_hf(save(tmp_path / "transformers", PLAIN, tensors))
    assert spec == again
    equal(params, others)


@pytest.mark.parametrize("base", [False, True])
def test_numbers_of_eight_and_four_bits_are_read_as_what_they_stand_for(tmp_path: Path, base: bool) -> None:
    stored, plain = quantised(random_tensors(), base)
    assert {str(tensor.dtype) for tensor in stored.values()} >= {"float8_e4m3fn"} | ({"int8"} if not base else set())
    directory = save(tmp_path / "hub", CONFIG | {"quantization_config": QUANTIZATION}, stored)
    _, params = load_hf(directory)
    equal(params, load_hf(save(tmp_path / "plain", PLAIN, plain))[1])
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    equal(load_hf(directory, mesh=mesh)[1]["run_0"]["layer_0"]["mlp"], params["run_0"]["layer_0"]["mlp"])


W1 = "layers.1.ffn.experts.2.w1"
REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "four bits without scales": (
        lambda t: {name: tensor for name, tensor in t.items() if name != f"{W1}.scale"},
        f"tensor '{W1}.weight' is int8 [32, 32], read as two numbers of four bits in a byte, but its scales are none",
    ),
    "integers of eight bits": (
        lambda t: t | {f"{W1}.scale": np.ones((32, 1), np.float32)},
        f"tensor '{W1}.weight' is int8 [32, 32], read as two numbers of four bits in a byte, but its scales are "
        "float32 [32, 1] where float8_e8m0fnu [out, in / 32] is expected; take the checkpoint that deepseek-ai",
    ),
    "eight bits without scales": (
        lambda t: {name: tensor for name, tensor in t.items() if name != "layers.0.attn.wq_a.scale"},
        "'model.layers.0.attn.wq_a.weight' has type float8_e4m3fn",
    ),
    "a tensor twice": (
        lambda t: t | {"model.norm.weight": t["norm.weight"]},
        "tensors 'norm.weight' and 'model.norm.weight' are the same one; keep one of them",
    ),
    "multi-token prediction": (
        lambda t: t | {"mtp.0.enorm.weight": t["norm.weight"]},
        "tensor 'mtp.0.enorm.weight' is not mapped to any parameter (of multi-token prediction, which is not read as "
        "it is here); to leave it out pass ignore=('mtp*',)",
    ),
}


@pytest.mark.parametrize(("edit", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, edit: Callable[[Tensors], Tensors], words: str) -> None:
    stored, _ = quantised(random_tensors())
    directory = save(tmp_path / "hub", CONFIG | {"quantization_config": QUANTIZATION}, edit(stored))
    with pytest.raises(ValueError, match=re.escape(words)):
        load_hf(directory)


def test_modules_of_multi_token_prediction_may_be_left_out(tmp_path: Path) -> None:
    stored, _ = quantised(random_tensors())
    module = {name.replace("layers.2.", "mtp.0."): t for name, t in stored.items() if name.startswith("layers.2.")}
    config = CONFIG | {"quantization_config": QUANTIZATION}
    _, params = load_hf(save(tmp_path / "with", config, stored | module), ignore=("mtp*",))
    equal(params, load_hf(save(tmp_path / "without", config, stored))[1])


def test_a_checkpoint_of_others_keeps_its_names(tmp_path: Path) -> None:
    tensors = {name: np.ones(2, np.float32) for name in ("embed.weight", "layers.0.scale", "norm.weight")}
    assert as_written(open_checkpoint(save(tmp_path / "other", {}, tensors)).entries).keys() == tensors.keys()


def test_every_byte_is_two_numbers_the_lower_half_first() -> None:
    numbers = unpack(np.arange(256, dtype=np.uint8)).astype(np.float32)
    expected = [number(half) for byte in range(256) for half in (byte & 15, byte >> 4)]
    np.testing.assert_array_equal(numbers, np.array(expected, np.float32))


def test_scales_that_do_not_fit_a_matrix_of_four_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"w1_scale_inv: expected a scale for each 32 numbers .*, got \[2, 3\]"):
        dequantize_rows(np.zeros((2, 64), FP4), np.ones((2, 3), ml_dtypes.float8_e8m0fnu), name="w1")
