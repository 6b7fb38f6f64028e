"""Hugging Face checkpoint directories, read strictly and one tensor at a time.

Format: safetensors (github.com/huggingface/safetensors, README, "Format"): the header's length in eight little-endian
bytes, a JSON header `{name: {"dtype", "shape", "data_offsets": [start, end]}}`, then the data, which the tensors cover
without gap or overlap.

The safetensors library has the last word on every file. The checks before it exist because the library silently keeps
the last of two tensors with one name and seldom names the tensor it refuses. Reading is our own because the library has
no float8 for numpy and maps whole files, whose pages then stay.

`read_into` reads many tensors at once. Most lie transposed to the parameters that they become, and NumPy's copy of a
transposed array leaves every cache at each step. So all cores read runs of a file that fit in their caches, and copy
from there.

Terms: a shard is one safetensors file; the index (`model.safetensors.index.json`) says which shard holds which tensor.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open

from .mxfp4 import FP4, dequantize_rows, unpack

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
JSON_LIMIT = 100_000_000  # bytes; the library's own limit on a header
RUN = 2**19  # bytes that are read at once, into a core's own cache
STRAIGHT = 2**23  # bytes that are read at once to where they stay, as they are

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "F64": np.dtype(np.float64),
        "F32": np.dtype(np.float32),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
        "I64": np.dtype(np.int64),
        "I32": np.dtype(np.int32),
        "I16": np.dtype(np.int16),
        "I8": np.dtype(np.int8),
        "U64": np.dtype(np.uint64),
        "U32": np.dtype(np.uint32),
        "U16": np.dtype(np.uint16),
        "U8": np.dtype(np.uint8),
        "BOOL": np.dtype(np.bool_),
    }
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where one tensor lies: `offset` and `size` are bytes, counted from the start of `file`. Numbers of four bits
    (FP4) lie two in a byte, and are read into a byte each.
    """

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size: int


Target = tuple[Entry, NDArray[Any]]
"""A tensor, or rows of one, and the array that is to hold it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The tensors of a directory by name; iteration gives the names. An unknown name is a ValueError."""

    root: Path
    entries: Mapping[str, Entry]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._entry(name).dtype

    def file(self, name: str) -> Path:
        """The shard that holds the tensor."""
        return self._entry(name).file

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, read-only: a mapping of its own, so that its pages go back when the array does."""
        entry = self._entry(name)
        if entry.size == 0:
            array = np.empty(entry.shape, entry.dtype)
        else:
            try:
                raw = np.memmap(entry.file, np.uint8, mode="r", offset=entry.offset, shape=(entry.size,))
            except ValueError as error:
                raise ValueError(f"{entry.file}: tensor {name!r}: {error}; the file changed after opening") from None
            # A header that another writer left unpadded puts the data at an odd address; only then is there a copy.
            numbers = unpack(raw) if entry.dtype == FP4 else np.asarray(raw).view(entry.dtype)
            array = np.require(numbers.reshape(entry.shape), requirements="A")
        array.flags.writeable = False
        return array

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise ValueError(f"{self.root}: no tensor {name!r} among its {len(self)}")
        return self.entries[name]


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a Hugging Face directory or one safetensors file; reads headers only.

    As in transformers, `model.safetensors` comes before the index; without both, every `*.safetensors` file is a shard.
    Raises a ValueError that names file and tensor for anything malformed, missing, doubled or absent from the index,
    a FileNotFoundError where nothing is at `path`.
    """
    root = Path(path)
    index: dict[str, str] | None = None
    if root.is_file():
        files = [root]
    elif not root.is_dir():
        raise FileNotFoundError(f"{root}: no such file or directory; expected a Hugging Face checkpoint directory")
    elif (root / SINGLE).is_file():
        files = [root / SINGLE]
    elif (root / INDEX).is_file():
        index = _read_index(root / INDEX)
        files = [root / file for file in sorted(set(index.values()))]
    else:
        files = sorted(root.glob("*.safetensors"))
        if not files:
            _refuse_without_safetensors(root)

    entries: dict[str, Entry] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: this shard is missing; download it again")
        for name, entry in _read_header(file).items():
            if name in entries:
                raise ValueError(f"{file}: tensor {name!r} is in {entries[name].file.name} too; keep one of them")
            entries[name] = entry
    if index is not None:
        found = {name: entry.file.name for name, entry in entries.items()}
        for name in sorted(index.keys() | found.keys()):
            put, lies = index.get(name, "nowhere"), found.get(name, "nowhere")
            if put != lies:
                raise ValueError(f"{root / INDEX}: tensor {name!r} is put in {put}, but lies in {lies}; download again")
    return Checkpoint(root=root, entries=entries)


def of_four_bits(entry: Entry) -> Entry:
    """A tensor of bytes, each of them two numbers."""
    return replace(entry, dtype=FP4, shape=(*entry.shape[:-1], 2 * entry.shape[-1]))


# --- many tensors at once --------------------------------------------------------------------------------------------


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of anything, at a multiple of 64 bytes: what JAX takes over on a CPU without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def read_into(targets: Iterable[Target]) -> None:
    """Reads each tensor into an array of its shape, of any strides and any float type, on all cores.

    Memory: RUN a core. Raises ValueError naming the file if one has shrunk.
    """
    in_runs(targets, "rb", _read_run)


def in_runs(targets: Iterable[Target], mode: str, work: Callable[[int, list[Target], NDArray[Any]], None]) -> None:
    """Gives work(file descriptor, run, RUN bytes to work in) all targets in runs, on all cores."""
    rows = [row for entry, array in targets for row in _rows(entry, array)]
    rows.sort(key=lambda target: (target[0].file, target[0].offset))
    remaining, cores = iter(list(_runs(rows))), os.cpu_count() or 1
    with ExitStack() as stack, ThreadPoolExecutor(cores) as pool:
        names = {entry.file for entry, _ in rows}
        files = {name: stack.enter_context(open(name, mode, buffering=0)).fileno() for name in names}

        def some(_: int) -> None:
            buffer = np.empty(RUN, np.uint8)
            for run in remaining:
                work(files[run[0][0].file], run, buffer)

        for _ in pool.map(some, range(cores)):
            pass


def as_bits(array: NDArray[Any]) -> NDArray[Any]:
    """The same bits as integers: NumPy copies types that are not its own one element after another."""
    return array.view(f"u{array.dtype.itemsize}")


def _rows(entry: Entry, array: NDArray[Any]) -> Iterator[Target]:
    """A tensor in parts that fit in a run: whole rows, or parts of a row."""
    straight = array.flags.c_contiguous and array.dtype == entry.dtype
    limit = STRAIGHT if straight else RUN
    if entry.size <= limit:
        yield entry, array
        return
    row = entry.size // entry.shape[0]
    step = max(1, limit // row)
    for start in range(0, entry.shape[0], step):
        part = array[start : start + step]
        at = entry.offset + start * row
        below = Entry(file=entry.file, dtype=entry.dtype, shape=part.shape, offset=at, size=len(part) * row)
        if row > limit:
            yield from _rows(replace(below, shape=part.shape[1:]), part[0])
        else:
            yield below, part


def _runs(rows: Iterable[Target]) -> Iterator[list[Target]]:
    """Neighbours in a file, as many as fit in a run."""
    run: list[Target] = []
    for entry, array in rows:
        if run:
            first, last = run[0][0], run[-1][0]
            end = last.offset + last.size
            if (entry.file, entry.offset) != (last.file, end) or end + entry.size - first.offset > RUN:
                yield run
                run = []
        run.append((entry, array))
    if run:
        yield run


def _read_run(file: int, run: list[Target], buffer: NDArray[Any]) -> None:
    (first, array), (last, _) = run[0], run[-1]
    if len(run) == 1 and array.flags.c_contiguous and array.dtype == first.dtype:
        _read(file, first, array.reshape(-1).view(np.uint8))
        return
    raw = buffer[: last.offset + last.size - first.offset]
    _read(file, first, raw)
    for entry, array in run:
        start = entry.offset - first.offset
        tensor = raw[start : start + entry.size].view(entry.dtype).reshape(entry.shape)
        if array.dtype == tensor.dtype:
            tensor, array = as_bits(tensor), as_bits(array)
        with np.errstate(over="ignore", invalid="ignore"):  # what a type cannot hold becomes infinite, as in JAX
            array[...] = tensor


def _read(file: int, entry: Entry, raw: NDArray[Any]) -> None:
    done = 0
    while done < raw.size:
        count = os.preadv(file, [raw[done:].data], entry.offset + done)
        if count == 0:
            raise ValueError(f"{entry.file}: it ends at byte {entry.offset + done}; the file changed after opening")
        done += count


def dequantize_blocks(
    weight: NDArray[Any],
    scale_inv: NDArray[Any],
    block: tuple[int, int] = (128, 128),
    dtype: DTypeLike = np.float32,
    *,
    name: str = "weight",
) -> NDArray[Any]:
    """DeepSeek-V3's published block float8 (DeepSeek-AI, 2024, section 3.3.2) -> `dtype` [out, in].

    `weight` is float8_e4m3fn [out, in], `scale_inv` [ceil(out / block[0]), ceil(in / block[1])]; a value is its weight
    times its block's scale, multiplied in float32. Blocks at the lower and right edges may be partial. Numbers of four
    bits have a scale for each 32 of a row, whatever the block (mxfp4.py).
    Raises a ValueError that calls the tensors `name` and `name`_scale_inv, as the files do.
    """
    if weight.dtype == FP4:
        return dequantize_rows(weight, scale_inv, dtype, name=name)
    height, width = block
    if weight.dtype != DTYPES["F8_E4M3"] or weight.ndim != 2:
        raise ValueError(f"{name}: expected float8_e4m3fn [out, in], got {weight.dtype} {list(weight.shape)}")
    if height < 1 or width < 1:
        raise ValueError(f"{name}: block {height} x {width} is empty; the config's weight_block_size must be positive")
    grid = (math.ceil(weight.shape[0] / height), math.ceil(weight.shape[1] / width))
    if scale_inv.shape != grid:
        raise ValueError(
            f"{name}_scale_inv: expected {list(grid)}, a scale for each {height} x {width} block of {name} "
            f"{list(weight.shape)}, got {list(scale_inv.shape)}"
        )
    result = np.empty(weight.shape, dtype)
    for row, scales in enumerate(scale_inv.astype(np.float32)):  # a band of blocks at a time keeps float32 copies small
        band = slice(row * height, (row + 1) * height)
        result[band] = weight[band].astype(np.float32) * np.repeat(scales, width)[: weight.shape[1]]
    return result


def _read_header(file: Path) -> dict[str, Entry]:
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, JSON_LIMIT):
            raise ValueError(
                f"{file}: {size} bytes cannot hold its header of {length} bytes (limit {JSON_LIMIT}); "
                "a broken download or a Git LFS pointer? download it again"
            )
        header = strict_json(file, stream.read(length))
    start = 8 + length
    tensors = {name: fields for name, fields in header.items() if name != "__metadata__"}
    entries = {name: _parse_entry(file, name, fields, start) for name, fields in tensors.items()}

    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].size)):
        if entry.offset != position:
            fault = "overlaps another tensor" if entry.offset < position else "leaves a gap before it"
            raise ValueError(f"{file}: tensor {name!r} {fault}: it starts at byte {entry.offset}, expected {position}")
        position = entry.offset + entry.size
        if position > size:
            raise ValueError(f"{file}: tensor {name!r} ends at byte {position} of {size}: truncated; download it again")
    if position != size:
        raise ValueError(f"{file}: {size - position} trailing bytes belong to no tensor; download it again")
    try:
        with safe_open(file, framework="numpy"):
            return entries
    except SafetensorError as error:
        raise ValueError(f"{file}: refused by safetensors: {error}") from None


def _parse_entry(file: Path, name: str, fields: Any, start: int) -> Entry:
    where = f"{file}: tensor {name!r}"
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise ValueError(f"{where}: expected an object with dtype, shape and data_offsets")
    code, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"{where}: dtype {code!r:.40} is not one of {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > 64:
        raise ValueError(f"{where}: shape {shape!r:.80} is not a list of at most 64 integers in [0, 2^63)")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{where}: data_offsets {offsets!r:.80} is not a pair of integers in [0, 2^63)")
    dtype = DTYPES[code]
    if math.prod(extent or 1 for extent in shape) * dtype.itemsize >= 2**63:  # also where an extent of 0 hides it
        raise ValueError(f"{where}: shape {shape!r:.80} overflows 63 bits of bytes")
    size = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != size:
        raise ValueError(f"{where}: {code} {shape} takes {size} bytes, but its data_offsets are {offsets}")
    return Entry(file=file, dtype=dtype, shape=tuple(shape), offset=start + offsets[0], size=size)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _read_index(file: Path) -> dict[str, str]:
    if file.stat().st_size > JSON_LIMIT:
        raise ValueError(f"{file}: {file.stat().st_size} bytes are over the limit of {JSON_LIMIT}")
    weight_map = strict_json(file, file.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{file}: weight_map must be an object of tensor names and file names")
    for name, shard in weight_map.items():
        # Names are checked, not resolved paths: in the Hugging Face cache all shards are links that lead elsewhere.
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\\x00-\x1f]+\.safetensors", shard):
            raise ValueError(f"{file}: tensor {name!r}: {shard!r:.80} is not a .safetensors file of this directory")
    return weight_map


def strict_json(file: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"{key!r} is there twice")
            result[key] = value
        return result

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: its JSON is refused: {error}; download it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: its JSON is a {type(value).__name__}, not an object; download it again")
    return value


def _refuse_without_safetensors(root: Path) -> NoReturn:
    found = "none"
    for pickled in root.glob("pytorch_model*.bin"):
        found = f"{pickled.name}, which must be converted (in transformers: from_pretrained, then save_pretrained)"
    raise ValueError(f"{root}: expected {SINGLE}, {INDEX} and its shards, or other *.safetensors files; found {found}")
