"""Reading Hugging Face directories: what is accepted, what is refused and in which words, and what stays in memory."""

import json
import mmap
import os
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from archzoo.zoo import tensors
from archzoo.zoo.tensors import DTYPES, INDEX, aligned, dequantize_blocks, open_checkpoint, read_into

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with whatever header: an object, or the text itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def write_shard(file: Path, *names: str, value: float = 0.0) -> None:
    header = {name: {**GOOD, "data_offsets": [8 * i, 8 * i + 8]} for i, name in enumerate(names)}
    file.write_bytes(safetensors_bytes(header, np.full(2 * len(names), value, np.float32).tobytes()))


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def two(first: list[int], second: list[int]) -> dict[str, Any]:
    return {"a": {**GOOD, "data_offsets": first}, "b": {**GOOD, "data_offsets": second}}


HOSTILE_FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "zero length": (b"", ("0 bytes cannot hold",)),
    "shorter than its length field": (b"abc", ("3 bytes cannot hold",)),
    "header larger than the file": (safetensors_bytes({"a": GOOD}, bytes(8), length=1000), ("header of 1000 bytes",)),
    "header length of 2^63": (safetensors_bytes({"a": GOOD}, bytes(8), length=2**63), (str(2**63),)),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", ("Git LFS",)),
    "header not json": (safetensors_bytes(b'{"a'), ("JSON",)),
    "header not utf-8": (safetensors_bytes(b'{"\xff":1}'), ("JSON", "utf-8")),
    "header nested without end": (safetensors_bytes(b'{"a":' + b"[" * 100_000), ("JSON", "recursion")),
    "header not an object": (safetensors_bytes([]), ("list", "not an object")),
    "metadata not text": (safetensors_bytes({"__metadata__": {"x": 1}, "a": GOOD}, bytes(8)), ("refused by safet",)),
    "duplicate name": (
        safetensors_bytes(f'{{"a":{json.dumps(GOOD)},"a":{json.dumps(GOOD)}}}'.encode(), bytes(8)),
        ("'a' is there twice",),
    ),
    "duplicate field": (
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        ("'shape' is there twice",),
    ),
    "entry not an object": (safetensors_bytes({"a": 3}), ("'a'", "expected an object")),
    "entry without shape": (safetensors_bytes({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), ("'a'",)),
    "truncated": (safetensors_bytes({"a": GOOD}, bytes(4)), ("'a'", "truncated")),
    "trailing bytes": (safetensors_bytes({"a": GOOD}, bytes(12)), ("4 trailing bytes",)),
    "data without tensors": (safetensors_bytes({}, bytes(12)), ("12 trailing bytes",)),
    "overlap": (safetensors_bytes(two([0, 8], [4, 12]), bytes(12)), ("'b'", "overlaps")),
    "shared offsets": (safetensors_bytes(two([0, 8], [0, 8]), bytes(8)), ("'b'", "overlaps")),
    "gap between": (safetensors_bytes(two([0, 8], [12, 20]), bytes(20)), ("'b'", "gap")),
    "gap at the start": (safetensors_bytes({"a": {**GOOD, "data_offsets": [4, 12]}}, bytes(12)), ("'a'", "gap")),
}

HOSTILE_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown dtype": ({"dtype": "F31"}, "dtype 'F31' is not one of"),
    "dtype not text": ({"dtype": ["F32"]}, "dtype ['F32']"),
    "negative extent": ({"shape": [-2]}, "shape [-2]"),
    "fractional extent": ({"shape": [2.0]}, "shape [2.0]"),
    "boolean extent": ({"shape": [True, 2]}, "shape [True, 2]"),
    "shape not a list": ({"shape": "2\n"}, r"shape '2\n'"),
    "too many extents": ({"shape": [1] * 65, "data_offsets": [0, 4]}, "at most 64"),
    "huge extent": ({"shape": [2**70]}, "2^63"),
    "overflowing product": ({"shape": [2**40, 2**40]}, "overflows"),
    "overflow behind a zero": ({"shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}, "overflows"),
    "span too short": ({"shape": [3]}, "takes 12 bytes"),
    "span reversed": ({"data_offsets": [8, 0]}, "takes 8 bytes"),
    "negative offset": ({"data_offsets": [-8, 0]}, "data_offsets [-8, 0]"),
    "three offsets": ({"data_offsets": [0, 8, 8]}, "data_offsets [0, 8, 8]"),
    "boolean offset": ({"data_offsets": [False, 8]}, "data_offsets [False, 8]"),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE_FILES.values(), ids=HOSTILE_FILES)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    message = refusal(file)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("fields", "words"), HOSTILE_FIELDS.values(), ids=HOSTILE_FIELDS)
def test_a_malformed_entry_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors_bytes({"layer.weight": {**GOOD, **fields}}, bytes(8)))
    message = refusal(file)
    assert "tensor 'layer.weight'" in message
    assert words in message


def test_a_header_over_the_limit_is_refused_though_the_file_could_hold_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((100_000_001).to_bytes(8, "little"))
    with open(file, "r+b") as stream:
        stream.truncate(200_000_000)  # sparse: no disk is used
    assert "header of 100000001 bytes (limit 100000000)" in refusal(file)


def test_any_damaged_header_byte_gives_tensors_or_a_value_error(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    good = safetensors_bytes({"__metadata__": {"format": "pt"}, **two([0, 8], [8, 16])}, bytes(16))
    refusals = []
    for position in range(len(good) - 16):
        for byte in b'\x00"}9-\xff':
            file.write_bytes(good[:position] + bytes([byte]) + good[position + 1 :])
            try:
                checkpoint = open_checkpoint(file)
            except ValueError as error:
                refusals.append(str(error))
            else:
                assert sum(checkpoint.read(name).nbytes for name in checkpoint) == 16
    assert len(refusals) > len(good)
    assert all("\n" not in message and str(file) in message for message in refusals)


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_is_read(tmp_path: Path, code: str) -> None:
    dtype = DTYPES[code]
    values = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    file = tmp_path / "model.safetensors"
    fields = {"dtype": code, "shape": [3, 2], "data_offsets": [0, values.nbytes]}
    file.write_bytes(safetensors_bytes({"a": fields}, values.tobytes()))
    checkpoint = open_checkpoint(file)
    array = checkpoint.read("a")
    assert checkpoint.dtype("a") == array.dtype == dtype
    assert checkpoint.shape("a") == array.shape == (3, 2)
    assert array.tobytes() == values.tobytes()


@pytest.mark.parametrize(("shape", "size"), [([], 4), ([0], 0), ([3, 0, 2], 0), ([1] * 64, 4)])
def test_scalars_empty_and_deep_shapes_are_read(tmp_path: Path, shape: list[int], size: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors_bytes({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}, bytes(size)))
    array = open_checkpoint(file).read("a")
    assert array.shape == tuple(shape)
    assert not array.flags.writeable


def test_an_array_is_read_only_and_aligned_after_an_unpadded_header(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for padding in range(8):
        file.write_bytes(safetensors_bytes(json.dumps({"a": GOOD}).encode() + b" " * padding, b"\x00\x00\x80\x3f" * 2))
        array = open_checkpoint(file).read("a")
        assert array.flags.aligned
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, np.ones(2, np.float32))


def test_reading_maps_one_tensor_and_lets_it_go(tmp_path: Path) -> None:
    size = 4 * mmap.ALLOCATIONGRANULARITY
    names = [f"t{i}" for i in range(8)]
    header = {
        name: {"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate(names)
    }
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors_bytes(header, b"".join(bytes([i]) * size for i in range(8))))
    checkpoint = open_checkpoint(file)
    for i, name in enumerate(names):
        array = checkpoint.read(name)
        assert array[0] == array[-1] == i
        mapping: Any = array
        while not isinstance(mapping, mmap.mmap):
            mapping = mapping.base
        assert len(mapping) <= size + mmap.ALLOCATIONGRANULARITY
        alive = weakref.ref(mapping)
        del array, mapping
        assert alive() is None


def test_a_file_that_shrank_after_opening_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_shard(file, "a", "b")
    checkpoint = open_checkpoint(file)
    file.write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor 'b'.*changed after opening"):
        checkpoint.read("b")


def test_an_unknown_name_is_refused_with_the_directory(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", "a")
    checkpoint = open_checkpoint(tmp_path)
    assert "a" in checkpoint
    assert "x" not in checkpoint
    for method in (checkpoint.shape, checkpoint.dtype, checkpoint.file, checkpoint.read):
        with pytest.raises(ValueError, match="no tensor 'x'") as caught:
            method("x")
        assert str(tmp_path) in str(caught.value)


def test_shards_are_joined_by_index_and_without_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "model-00001-of-00002.safetensors", "a", value=1)
    write_shard(tmp_path / "model-00002-of-00002.safetensors", "b", "c", value=2)
    for _ in ("without an index", "with it"):
        checkpoint = open_checkpoint(tmp_path)
        assert (list(checkpoint), len(checkpoint)) == (["a", "b", "c"], 3)
        assert checkpoint.file("c") == tmp_path / "model-00002-of-00002.safetensors"
        assert [checkpoint.read(name)[0] for name in checkpoint] == [1, 2, 2]
        weight_map = {name: checkpoint.file(name).name for name in checkpoint}
        write_index(tmp_path, weight_map)


def test_the_single_file_comes_before_the_index_and_other_files_do_not_count(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", "a", value=1)
    write_shard(tmp_path / "other.safetensors", "a", value=2)
    write_index(tmp_path, {"a": "other.safetensors"})
    assert open_checkpoint(tmp_path).read("a")[0] == 1


def test_files_that_are_links_as_in_the_hub_cache_are_read(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_shard(tmp_path / "blobs" / "0123", "a")
    (tmp_path / "snapshot" / "model-00001-of-00001.safetensors").symlink_to("../blobs/0123")
    write_index(tmp_path / "snapshot", {"a": "model-00001-of-00001.safetensors"})
    assert list(open_checkpoint(tmp_path / "snapshot")) == ["a"]


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "one.safetensors", "a", "b")
    write_shard(tmp_path / "two.safetensors", "b", "c")
    for _ in ("without an index", "with it"):
        message = refusal(tmp_path)
        assert "tensor 'b'" in message
        assert "one.safetensors" in message
        assert "two.safetensors" in message
        write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "one.safetensors", "b": "one.safetensors", "x": "one.safetensors"}, ("'x'", "one.safetensors")),
        ({"a": "one.safetensors"}, ("'b'", "one.safetensors", "nowhere")),
        ({"a": "one.safetensors", "b": "gone.safetensors"}, ("gone.safetensors", "missing")),
        ({"a": "../one.safetensors"}, ("'a'", "'../one.safetensors'")),
        ({"a": "/one.safetensors"}, ("'a'", "'/one.safetensors'")),
        ({"a": "sub/one.safetensors"}, ("'a'", "'sub/one.safetensors'")),
        ({"a": "..\\one.safetensors"}, ("'a'", "one.safetensors")),
        ({"a": "one.safetensors\n"}, ("'a'", r"one.safetensors\n")),
        ({"a": ".."}, ("'a'", "'..'")),
        ({"a": "pytorch_model.bin"}, ("'a'", "pytorch_model.bin")),
        ({"a": 3}, ("'a'", "3")),
        ({}, (INDEX, "weight_map")),
        (["a"], (INDEX, "weight_map")),
        (None, (INDEX, "weight_map")),
    ],
)
def test_an_index_that_does_not_match_is_refused_by_name(
    tmp_path: Path, weight_map: Any, words: tuple[str, ...]
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for directory in (inside, tmp_path):  # so that a traversal would find a good file
        write_shard(directory / "one.safetensors", "a", "b")
    write_index(inside, weight_map)
    message = refusal(inside)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"weight_map": {"a": "one.safetensors", "a": "one.safetensors"}}', "'a' is there twice"),
        ("{", "JSON"),
        ("[]", "not an object"),
        ("", "JSON"),
    ],
)
def test_an_index_that_is_not_strict_json_is_refused(tmp_path: Path, text: str, words: str) -> None:
    write_shard(tmp_path / "one.safetensors", "a")
    (tmp_path / INDEX).write_text(text)
    message = refusal(tmp_path)
    assert INDEX in message
    assert words in message


def test_an_index_over_the_limit_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / INDEX, "wb") as stream:
        stream.truncate(200_000_000)
    assert "200000000 bytes are over the limit" in refusal(tmp_path)


def test_a_directory_without_safetensors_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    message = refusal(tmp_path)
    assert "expected model.safetensors" in message
    assert INDEX in message
    assert "convert" not in message
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    message = refusal(tmp_path)
    assert "pytorch_model.bin" in message
    assert "convert" in message


def test_a_path_where_nothing_is_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or directory"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("shape", "block"), [((8, 12), (4, 4)), ((7, 9), (4, 4)), ((3, 2), (128, 128)), ((5, 6), (2, 3)), ((0, 5), (4, 4))]
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_dequantize_blocks_equals_a_double_loop(shape: tuple[int, int], block: tuple[int, int], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)
    scale_inv = rng.uniform(0.1, 3.0, size=(-(-shape[0] // block[0]), -(-shape[1] // block[1]))).astype(np.float32)
    expected = np.empty(shape, dtype)
    for i in range(shape[0]):
        for j in range(shape[1]):
            expected[i, j] = np.float32(weight[i, j]) * scale_inv[i // block[0], j // block[1]]
    result = dequantize_blocks(weight, scale_inv, block, dtype)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)


def test_dequantize_blocks_takes_the_published_block_by_default() -> None:
    weight = np.ones((129, 256), ml_dtypes.float8_e4m3fn)
    result = dequantize_blocks(weight, np.array([[1, 2], [3, 4]], np.float32))
    assert [result[0, 0], result[127, 128], result[128, 127], result[128, 255]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("weight", "scale_shape", "block", "words"),
    [
        (
            np.ones((4, 4), ml_dtypes.float8_e4m3fn),
            (1, 2),
            (4, 4),
            r"q_proj_scale_inv: expected \[1, 1\].*got \[1, 2\]",
        ),
        (np.ones((4, 4), ml_dtypes.float8_e4m3fn), (1,), (4, 4), r"q_proj_scale_inv: .*got \[1\]"),
        (np.ones((4,), ml_dtypes.float8_e4m3fn), (1, 1), (4, 4), r"q_proj: .*got float8_e4m3fn \[4\]"),
        (np.ones((4, 4), np.float32), (1, 1), (4, 4), r"q_proj: .*got float32 \[4, 4\]"),
        (np.ones((4, 4), ml_dtypes.float8_e4m3fn), (1, 1), (4, 0), "q_proj: block 4 x 0 is empty"),
    ],
)
def test_dequantize_blocks_refuses_shapes_by_name(
    weight: Any, scale_shape: tuple[int, ...], block: tuple[int, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        dequantize_blocks(weight, np.ones(scale_shape, np.float32), block, name="q_proj")


# --- many tensors at once --------------------------------------------------------------------------------------------


TARGETS: dict[str, Callable[[tuple[int, ...]], NDArray[Any]]] = {
    "straight": lambda shape: np.zeros(shape, np.float32),
    "transposed": lambda shape: np.zeros(shape[::-1], np.float32).T,
    "a slice of a stack": lambda shape: np.zeros((*shape[::-1], 3), np.float32)[..., 1].T,
    "wider": lambda shape: np.zeros(shape, np.float64),
    "narrower and transposed": lambda shape: np.zeros(shape[::-1], ml_dtypes.bfloat16).T,
}


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("run", [8, 100, 2**20])
def test_tensors_are_read_into_arrays_of_any_strides_and_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[tuple[int, ...]], NDArray[Any]], run: int
) -> None:
    for size in ("RUN", "STRAIGHT"):
        monkeypatch.setattr(tensors, size, run)
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"a": (7, 5), "b": (300,), "c": (3, 4, 5), "d": (), "e": (1, 9), "f": (0, 4)}
    values = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}
    for file, names in (("one", "abc"), ("two", "def")):
        save_file({name: values[name] for name in names}, tmp_path / f"{file}.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    arrays = {name: make(shape) for name, shape in shapes.items()}
    read_into((checkpoint.entries[name], array) for name, array in arrays.items())
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, values[name].astype(array.dtype), strict=True)


def test_types_that_numpy_lacks_are_read_bit_for_bit(tmp_path: Path) -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)  # every bfloat16, so every NaN too
    header = {"a": {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, bits.nbytes]}}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, bits.tobytes()))
    array = np.empty((256, 256), ml_dtypes.bfloat16).T
    read_into([(open_checkpoint(tmp_path).entries["a"], array)])
    np.testing.assert_array_equal(array.view(np.uint16), bits)


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16])
def test_values_are_rounded_as_jax_rounds_them(tmp_path: Path, kind: Any) -> None:
    rng = np.random.default_rng(0)
    ties = np.float32([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -65519.0, -65520.0])
    beyond = np.float32([np.inf, -np.inf, np.nan, 1e30, 3.4e38, 0.0, -0.0])
    values = np.concatenate([ties, beyond, np.float32(rng.normal(size=1000) * 10.0 ** rng.integers(-4, 5, 1000))])
    save_file({"a": values}, tmp_path / "model.safetensors")
    array = np.empty(values.shape, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_into([(open_checkpoint(tmp_path).entries["a"], array)])
    expected = np.asarray(jnp.asarray(values).astype(kind))
    np.testing.assert_array_equal(array.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("straight", [True, False])
def test_a_file_that_shrank_is_refused_while_many_are_read(tmp_path: Path, straight: bool) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": np.ones((8, 8), np.float32)}, file)
    entry = open_checkpoint(file).entries["a"]
    os.truncate(file, file.stat().st_size - 4)
    array = np.empty((8, 8), np.float32)
    with pytest.raises(ValueError, match=r"model\.safetensors: it ends at byte \d+; the file changed after opening"):
        read_into([(entry, array if straight else array.T)])


def test_jax_takes_aligned_arrays_over_where_they_lie() -> None:
    for shape, kind in (((3, 5), np.float32), ((7,), ml_dtypes.bfloat16), ((), np.int32)):
        array = aligned(shape, kind)
        array[...] = 1
        taken = jax.device_put(array, may_alias=True)
        assert taken.unsafe_buffer_pointer() == array.ctypes.data
        assert (taken.shape, taken.dtype) == (shape, kind)
