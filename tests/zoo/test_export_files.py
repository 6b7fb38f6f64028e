"""Writing Hugging Face directories: what libraries read back, what a failure leaves, what memory it takes."""

import errno
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from archzoo.zoo import export_files, tensors
from archzoo.zoo.export_files import LazyTensor, write_checkpoint
from archzoo.zoo.tensors import DTYPES, INDEX, open_checkpoint


def lazy(name: str, array: NDArray[Any]) -> LazyTensor:
    return LazyTensor(name=name, shape=array.shape, dtype=array.dtype, read=lambda: array)


def filled(*names: str, value: float = 0.0, extent: int = 4) -> list[LazyTensor]:
    return [lazy(name, np.full(extent, value, np.float32)) for name in names]


def misdeclared(shape: tuple[int, ...], array: NDArray[Any]) -> LazyTensor:
    return LazyTensor(name="a", shape=shape, dtype=np.float32, read=lambda: array)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under a directory, hidden ones and folders included."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in directory.rglob("*")}


def failing(error: BaseException) -> Callable[[], NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        code: rng.integers(0, 2 if code == "BOOL" else 256, size=(3, 5 * dtype.itemsize), dtype=np.uint8).view(dtype)
        for code, dtype in DTYPES.items()
    }
    arrays["scalar"] = np.array(2.5, np.float32)
    arrays["empty"] = np.empty((3, 0), np.float16)
    write_checkpoint(tmp_path, [lazy(name, array) for name, array in arrays.items()])
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint) == set(arrays)
    for name, array in arrays.items():
        assert checkpoint.dtype(name) == array.dtype
        assert checkpoint.shape(name) == array.shape
        assert checkpoint.read(name).tobytes() == array.tobytes()


def test_the_safetensors_library_reads_the_same_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4)).astype(np.float32)
    arrays = {code: values.astype(DTYPES[code]) for code in ("F64", "F32", "F16", "BF16", "I32", "BOOL")}
    write_checkpoint(tmp_path, [lazy(name, array) for name, array in arrays.items()])
    loaded = load_file(tmp_path / "model.safetensors")
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_data_of_mixed_dtypes_are_aligned(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "a": np.ones(3, np.uint8),
        "b": np.ones(3, np.float16),
        "c": np.ones(3, np.float64),
        "d": np.ones(1, np.int32),
    }
    write_checkpoint(tmp_path, [lazy(name, array) for name, array in arrays.items()])
    for name, entry in open_checkpoint(tmp_path).entries.items():
        assert entry.offset % entry.dtype.itemsize == 0, name
    length = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert length % 8 == 0


def test_arrays_that_are_not_contiguous_are_written_in_order(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 6).T[::2]
    write_checkpoint(tmp_path, [lazy("a", array)])
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("a"), array)


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    for run in ("one", "two"):
        write_checkpoint(
            tmp_path / run, filled("a", "b", "c", value=1), max_shard_bytes=32, files={"config.json": "{}"}
        )
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert len(one) == 4
    assert list(one.values()) == [two[path.replace("one", "two", 1)] for path in one]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (64, ["abcd"]),
        (63, ["abc", "d"]),
        (32, ["ab", "cd"]),
        (16, ["a", "b", "c", "d"]),
        (1, ["a", "b", "c", "d"]),
    ],
)
def test_shards_fill_up_to_the_limit(tmp_path: Path, limit: int, expected: list[str]) -> None:
    write_checkpoint(tmp_path, filled(*"abcd", value=3), max_shard_bytes=limit)
    count = len(expected)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    weight_map = {name: file for file, shard in zip(names, expected, strict=True) for name in shard}
    if count == 1:
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    else:
        assert {path.name for path in tmp_path.iterdir()} == {*names, INDEX}
        index = json.loads((tmp_path / INDEX).read_text())
        assert index == {"metadata": {"total_size": 64}, "weight_map": weight_map}
    checkpoint = open_checkpoint(tmp_path)
    assert all((checkpoint.read(name) == 3).all() for name in "abcd")


def test_extra_files_are_written_as_text_or_bytes(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path / "new" / "model", filled("a"), files={"config.json": "{ü}", "vocab": b"\xff", "empty": ""}
    )
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "new" / "model").iterdir() if path.suffix != ".safetensors"
    } == {
        "config.json": "{ü}".encode(),
        "vocab": b"\xff",
        "empty": b"",
    }


def test_an_older_export_is_replaced_and_other_files_stay(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, filled("a", "b", "c", value=1), max_shard_bytes=16, files={"config.json": "old"})
    (tmp_path / "model-00007-of-000163.safetensors").write_bytes(b"from another exporter")
    for kept in ("notes.txt", "model_card.md", "model_ema.safetensors"):
        (tmp_path / kept).write_text(kept)
    write_checkpoint(tmp_path, filled("a", "d", value=2), files={"config.json": "new"})
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.safetensors", "config.json", "notes.txt", "model_card.md", "model_ema.safetensors"
    }  # fmt: skip
    assert (tmp_path / "config.json").read_text() == "new"
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint) == ["a", "d"]
    assert checkpoint.read("a")[0] == 2


def test_an_export_may_read_from_the_directory_it_replaces(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [*filled("a", value=1), *filled("b", value=2)], max_shard_bytes=16)
    old = open_checkpoint(tmp_path)
    tensors = [
        LazyTensor(name=name, shape=old.shape(name), dtype=old.dtype(name), read=partial(old.read, name))
        for name in old
    ]
    write_checkpoint(tmp_path, tensors)
    new = open_checkpoint(tmp_path)
    assert {name: new.read(name)[0] for name in new} == {"a": 1, "b": 2}


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_directory_is_followed(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_checkpoint(tmp_path / "link", filled("a"))
    assert (tmp_path / "link").is_symlink()
    assert list(open_checkpoint(tmp_path / "real")) == ["a"]


def test_a_new_directory_follows_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    write_checkpoint(tmp_path / "export", filled("a"))
    assert (tmp_path / "export").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("target", ["old", "fresh"])
@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), KeyboardInterrupt(), MemoryError(), OSError(errno.EIO, "disk")]
)
def test_a_failing_read_leaves_everything_as_it_was(tmp_path: Path, target: str, error: BaseException) -> None:
    write_checkpoint(tmp_path / "old", filled("a", "b", "c", value=1), max_shard_bytes=16, files={"config.json": "old"})
    before = contents(tmp_path)
    broken = LazyTensor(name="c", shape=(4,), dtype=np.float32, read=failing(error))
    with pytest.raises(type(error)):
        write_checkpoint(tmp_path / target, [*filled("a", "b", value=2), broken], max_shard_bytes=16)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("call", range(1, 9))
@pytest.mark.parametrize("error", [OSError(errno.EIO, "disk"), KeyboardInterrupt()])
def test_a_failure_while_moving_into_place_brings_the_old_export_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException
) -> None:
    write_checkpoint(tmp_path, filled("a", "b", "c", value=1), max_shard_bytes=16, files={"config.json": "old"})
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    rename, calls = os.rename, []

    def fail_once(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) == call:
            raise error
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(type(error)):  # five old files leave, then these three come
        write_checkpoint(tmp_path, filled("a", "z", value=2), files={"config.json": "new", "extra.json": "new"})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    write_checkpoint(tmp_path / "old", filled("a", value=1))
    before = contents(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(OSError(code, os.strerror(code))))
    with pytest.raises(
        OSError, match=r"disk full: the export needs \d+ bytes, \d+ were free.*model.safetensors"
    ) as caught:
        write_checkpoint(tmp_path / "old", filled("a", value=2))
    assert "\n" not in str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    assert contents(tmp_path) == before


def test_a_disk_too_small_is_refused_before_a_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    tensor = LazyTensor(name="a", shape=(1000,), dtype=np.float32, read=failing(AssertionError("read too early")))
    with pytest.raises(OSError, match=r"needs 4\d\d\d bytes, 100 were free.*export") as caught:
        write_checkpoint(tmp_path / "export", [tensor])
    assert caught.value.errno == errno.ENOSPC
    assert contents(tmp_path) == {}


def test_a_target_that_is_a_file_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "export").write_text("mine")
    with pytest.raises(NotADirectoryError, match="export: is a file"):
        write_checkpoint(tmp_path / "export", filled("a"))
    assert (tmp_path / "export").read_text() == "mine"


@pytest.mark.parametrize(
    ("tensors", "options", "words"),
    [
        (filled("a", "b", "a"), {}, "tensor 'a': this name is taken"),
        (filled("__metadata__"), {}, "tensor '__metadata__': this name is taken"),
        ([lazy("a", np.ones(2, np.complex128))], {}, "tensor 'a': safetensors has no complex128"),
        ([lazy("a", np.ones(2, ">f4"))], {}, "tensor 'a': safetensors has no >f4"),
        ([misdeclared((2,), np.ones(3, np.float32))], {}, r"'a' was declared float32 \[2\], .* gave float32 \[3\]"),
        ([misdeclared((2,), np.ones(2))], {}, r"'a' was declared float32 \[2\], .* gave float64 \[2\]"),
        ([misdeclared((), np.ones(1, np.float32))], {}, r"'a' was declared float32 \[\], .* gave float32 \[1\]"),
        (filled("a"), {"max_shard_bytes": 0}, "max_shard_bytes: 0"),
        (filled("a"), {"metadata": {"format": 1}}, "refused by safetensors"),
        (filled("a"), {"files": {"../config.json": ""}}, r"files: '\.\./config.json'"),
        (filled("a"), {"files": {"..": ""}}, r"files: '\.\.'"),
        (filled("a"), {"files": {"": ""}}, "files: ''"),
        (filled("a"), {"files": {"model.safetensors": ""}}, "files: 'model.safetensors'"),
        (filled("a"), {"files": {INDEX: ""}}, f"files: '{INDEX}'"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(
    tmp_path: Path, tensors: list[LazyTensor], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        write_checkpoint(tmp_path / "export", tensors, **options)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("extent", "count"), [(2**22, 6), (2**15, 400)], ids=["large", "small"])
def test_memory_holds_one_tensor_or_a_batch_of_small_ones(tmp_path: Path, extent: int, count: int) -> None:
    source = [
        LazyTensor(name=f"t{i}", shape=(extent,), dtype=np.float32, read=partial(np.full, extent, i, np.float32))
        for i in range(count)
    ]
    one, buffers, slack = max(4 * extent, export_files.BATCH), (os.cpu_count() or 1) * tensors.RUN, 2**20
    assert 4 * extent * count > 2 * one
    tracemalloc.start()
    try:
        write_checkpoint(tmp_path, source, max_shard_bytes=2**25)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        checkpoint = open_checkpoint(tmp_path)
        assert [checkpoint.read(f"t{i}")[-1] for i in range(count)] == list(range(count))
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written < one + buffers + slack
    assert read < slack


@pytest.mark.parametrize("run", [1, 24, 100, 2**20])
def test_large_tensors_are_written_in_parts_whichever_way_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    for size in ("RUN", "STRAIGHT"):
        monkeypatch.setattr(tensors, size, max(run, 8))
    monkeypatch.setattr(export_files, "TILE", 3)
    base = np.arange(5 * 6 * 7, dtype=np.int32).reshape(5, 6, 7)
    arrays: dict[str, NDArray[Any]] = {
        "straight": base,
        "transposed": base.transpose(2, 0, 1),
        "a matrix": base[0].T,
        "steps": base[::2, :, ::-1],
        "halves": base.astype(DTYPES["BF16"])[:, 1].T,
        "rows of a scalar": base[:, :1, 3],
        "a vector": np.arange(300, dtype=np.float64)[::-1],
        "a scalar": np.float32(3),
    }
    write_checkpoint(tmp_path, [lazy(name, array) for name, array in arrays.items()])
    checkpoint = open_checkpoint(tmp_path)
    for name, array in arrays.items():
        assert checkpoint.read(name).tobytes() == array.tobytes(), name
