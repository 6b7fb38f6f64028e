"""Hugging Face checkpoint directories, written whole or not at all, one tensor at a time.

Format: see tensors.py. The header follows from names, shapes and dtypes, so it is written before any tensor is read. It
is padded to 8 bytes, and wide dtypes come first in a shard (as in the safetensors library), so all data are aligned.

Everything goes into a hidden staging directory and moves into place when it is complete and on the disk. Staging lies
inside the target where that exists, otherwise beside it: so it shares the target's file system even where the target is
a mount point, as in a container.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .tensors import DTYPES, INDEX, SINGLE, Entry, Target, as_bits, in_runs, open_checkpoint

PYTORCH: Mapping[str, str] = MappingProxyType({"format": "pt"})  # transformers 4 loads no file without it
BATCH = 2**24  # bytes of small tensors that are read before they are written
TILE = 128  # columns of a transposed tensor that are written together
NO_FILES: Mapping[str, bytes | str] = MappingProxyType({})
WEIGHT_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


@dataclass(frozen=True, kw_only=True)
class LazyTensor:
    """A tensor to write: declared now, read when its turn comes. `read` returns exactly this shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: DTypeLike
    read: Callable[[], ArrayLike]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write_checkpoint(
    directory: str | os.PathLike[str],
    tensors: Iterable[LazyTensor],
    *,
    metadata: Mapping[str, str] = PYTORCH,
    max_shard_bytes: int = 5 * 10**9,
    files: Mapping[str, bytes | str] = NO_FILES,
) -> None:
    """Writes `tensors` and `files` (text such as config.json, by name) as a Hugging Face directory.

    One `model.safetensors` where all data fit in `max_shard_bytes`, otherwise numbered shards and an index; a larger
    tensor has a shard to itself. Memory holds one tensor at a time, or BATCH bytes of small ones, and RUN bytes a core:
    tensors may lie transposed, or be views of what is there anyway. Weight files of an earlier export are replaced,
    other files in the directory stay. Any failure leaves the directory as it was.
    Raises a ValueError that names the tensor or file, an OSError with bytes needed and free where the disk is full.
    """
    target = Path(directory).resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target}: is a file; an export needs a directory")
    shards = _name_shards(_plan_shards(_checked(tensors), max_shard_bytes))
    heads = {file: text.encode() if isinstance(text, str) else text for file, text in files.items()}
    for file in heads:
        if file != Path(file).name or file in ("", "..") or WEIGHT_FILES.fullmatch(file):
            raise ValueError(f"files: {file!r} must be a plain file name, and not one of the weights' own")
    heads |= {file: _header(shard, metadata) for file, shard in shards.items()}
    if len(shards) > 1:
        heads[INDEX] = _index(shards)

    parent = target if target.is_dir() else target.parent
    parent.mkdir(parents=True, exist_ok=True)
    needed = sum(map(len, heads.values())) + _total_size(shards)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise _disk_full(target, needed, free)
    staging = parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        (staging / "new").mkdir(parents=True)
        for file, head in heads.items():
            try:
                _write_file(staging / "new" / file, head, shards.get(file, ()))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _disk_full(target / file, needed, free) from error
                raise
        open_checkpoint(staging / "new")  # the reader, and with it the safetensors library, accepts what was written
        _move_into_place(staging, target)
    finally:
        shutil.rmtree(staging / "new", ignore_errors=True)
        with contextlib.suppress(OSError):
            staging.rmdir()


def _checked(tensors: Iterable[LazyTensor]) -> Iterator[LazyTensor]:
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names or tensor.name == "__metadata__":
            raise ValueError(f"tensor {tensor.name!r}: this name is taken; each tensor of an export needs its own")
        if np.dtype(tensor.dtype) not in DTYPES.values():
            raise ValueError(f"tensor {tensor.name!r}: safetensors has no {np.dtype(tensor.dtype)!s}; cast it first")
        names.add(tensor.name)
        yield tensor


def _plan_shards(tensors: Iterable[LazyTensor], max_shard_bytes: int) -> list[list[LazyTensor]]:
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes: {max_shard_bytes} must be positive")
    shards: list[list[LazyTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size
    return shards


def _name_shards(shards: Sequence[Sequence[LazyTensor]]) -> dict[str, list[LazyTensor]]:
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)] if count > 1 else [SINGLE]
    aligned = [sorted(shard, key=lambda tensor: -np.dtype(tensor.dtype).itemsize) for shard in shards]
    return dict(zip(names, aligned, strict=True))


def _header(shard: Iterable[LazyTensor], metadata: Mapping[str, str]) -> bytes:
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for tensor in shard:
        span = [position, position + tensor.size]
        shape = [int(extent) for extent in tensor.shape]
        header[tensor.name] = {"dtype": codes[np.dtype(tensor.dtype)], "shape": shape, "data_offsets": span}
        position = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _index(shards: Mapping[str, Iterable[LazyTensor]]) -> bytes:
    weight_map = {tensor.name: file for file, shard in shards.items() for tensor in shard}
    index = {"metadata": {"total_size": _total_size(shards)}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"


def _total_size(shards: Mapping[str, Iterable[LazyTensor]]) -> int:
    return sum(tensor.size for shard in shards.values() for tensor in shard)


def _write_file(path: Path, head: bytes, tensors: Iterable[LazyTensor]) -> None:
    with open(path, "wb") as stream:
        stream.write(head)
        stream.flush()
        offset = len(head)
        for batch in _batches(tensors):
            offset = _write_batch(path, offset, batch)
        os.fsync(stream.fileno())


def _batches(tensors: Iterable[LazyTensor]) -> Iterator[list[LazyTensor]]:
    """Tensors of BATCH bytes together, or one."""
    batch: list[LazyTensor] = []
    filled = 0
    for tensor in tensors:
        if batch and filled + tensor.size > BATCH:
            yield batch
            batch, filled = [], 0
        batch.append(tensor)
        filled += tensor.size
    if batch:
        yield batch


def _write_batch(path: Path, offset: int, batch: Iterable[LazyTensor]) -> int:
    """The offset of what comes next. A function of its own, so that the arrays are gone before others are read."""
    targets = []
    for tensor in batch:
        array, dtype = np.asarray(tensor.read()), np.dtype(tensor.dtype)
        if array.shape != tuple(tensor.shape) or array.dtype != dtype:
            raise ValueError(
                f"tensor {tensor.name!r} was declared {dtype!s} {list(tensor.shape)}, "
                f"but reading it gave {array.dtype!s} {list(array.shape)}"
            )
        if tensor.size:
            targets.append((Entry(file=path, dtype=dtype, shape=array.shape, offset=offset, size=tensor.size), array))
        offset += tensor.size
    in_runs(targets, "rb+", _write_run)
    return offset


def _write_run(file: int, run: Sequence[Target], buffer: NDArray[Any]) -> None:
    first, array = run[0]
    if len(run) == 1 and array.flags.c_contiguous:
        _write(file, first.offset, array.reshape(-1).view(np.uint8))
        return
    for entry, array in run:
        start = entry.offset - first.offset
        packed = buffer[start : start + entry.size].view(entry.dtype).reshape(entry.shape)
        _pack(as_bits(packed), as_bits(array))
    _write(file, first.offset, buffer[: start + entry.size])


def _pack(packed: NDArray[Any], array: NDArray[Any]) -> None:
    """packed[...] = array, in columns that caches hold where the array lies transposed."""
    if array.ndim < 2 or array.flags.c_contiguous:
        packed[...] = array
        return
    for start in range(0, array.shape[-1], TILE):
        columns = (..., slice(start, start + TILE))
        packed[columns] = array[columns]


def _write(file: int, offset: int, raw: NDArray[Any]) -> None:
    done = 0
    while done < raw.size:
        done += os.pwrite(file, raw[done:].data, offset + done)


def _move_into_place(staging: Path, target: Path) -> None:
    new, old = staging / "new", staging / "old"
    sync(new)
    if not target.exists():
        os.rename(new, target)
        sync(target.parent)
        return
    # Old files leave before new ones come: a crash in between shows missing files, never a mixture of two exports.
    names = sorted(file.name for file in new.iterdir())
    stale = [file.name for file in target.iterdir() if file.name in names or WEIGHT_FILES.fullmatch(file.name)]
    old.mkdir()
    try:
        for name in stale:
            os.rename(target / name, old / name)
        for name in names:
            os.rename(new / name, target / name)
    except BaseException:
        for name in names:
            if not (new / name).exists():
                (target / name).unlink(missing_ok=True)
        for file in old.iterdir():
            os.rename(file, target / file.name)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
    sync(target)


def sync(path: Path) -> None:
    """Returns when a file, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_full(path: Path, needed: int, free: int) -> OSError:
    return OSError(errno.ENOSPC, f"disk full: the export needs {needed} bytes, {free} were free; make room", str(path))
