"""Checkpoints: everything a run needs to go on, one folder a step, seen whole or not at all, and checked when read.

    DIRECTORY/00000300/manifest.json    the size and SHA-256 of every other file
                       spec.json, config.json, data.json, tokenizer/..., arrays.json (dtypes and shapes)
                       state/           Orbax: params, and optimizer (Optax's state and the number of the step)

Orbax (the JAX project's checkpoint library) writes arrays from all processes while training goes on. It commits what
it wrote, but reads flipped bits back without a word; hence the manifest. A step is written into a hidden folder that
takes its name when everything, the manifest too, is on the disk: a step that has a name is complete.

Arrays are written as they are, not compressed: floats of a trained model hardly shrink. So a shard of an array is a
file of its bytes (zarr 2, without a compressor), and is read from there to where it stays. Orbax reads these folders
too, but holds arrays twice meanwhile.
"""

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from ..layers.decoder import Spec, param_shapes
from ..zoo.export_files import sync
from ..zoo.tensors import Entry, Target, aligned, read_into
from .step import State

_MANIFEST = "manifest.json"
_PARTIAL = ".partial-"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A step on the disk, found complete and undamaged; `restore` reads its arrays.

    tokenizer: the tokenizer's files by name, also a folder that tokenizer.load takes: `path / "tokenizer"`.
    data: the state of the batches (data.py).  config: what the run was started with, plain data.
    arrays: {name: [dtype, shape]} of all that is in the state.
    """

    path: Path
    step: int
    spec: Spec
    tokenizer: dict[str, str]
    data: dict[str, Any]
    config: dict[str, Any]
    arrays: dict[str, list[Any]]


# --- writing ---------------------------------------------------------------------------------------------------------


class Saver:
    """Saves steps of one run into a directory in the background, and keeps the newest `keep`.

    A context manager: leaving it waits for the last save. What goes wrong in the background is raised by the next
    `save` or `wait`: an OSError in one line; steps saved before stay.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        spec: Spec,
        tokenizer: Mapping[str, str],
        config: Mapping[str, Any],
        keep: int = 3,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one checkpoint must be kept")
        self._directory, self._keep = Path(directory).absolute(), keep
        self._files = {f"tokenizer/{name}": text for name, text in tokenizer.items()}
        self._files |= {"spec.json": spec.to_json(), "config.json": json.dumps(dict(config), indent=1)}
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None
        self._directory.mkdir(parents=True, exist_ok=True)
        for left in self._directory.glob(f"{_PARTIAL}*") if jax.process_index() == 0 else ():
            shutil.rmtree(left)

    def save(self, state: State, data: Mapping[str, Any]) -> None:
        """Returns when the arrays are copied, so that the state may be donated; an earlier save is waited for.

        data: the state of the batches. A step of this number that is there already is replaced, and later ones, which
        belong to a run that went back to an earlier step, are put aside as `abandoned-...`.
        Raises OSError where the disk has no room for it, or for what the save before ran into.
        """
        import orbax.checkpoint as ocp

        self.wait()
        step = int(state.step)
        _require_room(self._directory, sum(leaf.nbytes for leaf in jax.tree.leaves(state)), step)
        partial = self._directory / f"{_PARTIAL}{step:08d}"
        files = self._files | {"data.json": json.dumps(dict(data)), "arrays.json": json.dumps(_index(state), indent=1)}
        if jax.process_index() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        items = {name: ocp.args.PyTreeSave(jax.tree.map(_array, item)) for name, item in _items(state).items()}
        handlers = {name: ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False) for name in items}
        writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))
        for logger in ("absl", "asyncio"):
            logging.getLogger(logger).addFilter(_is_news)
        try:
            writer.save(partial / "state", args=ocp.args.Composite(**items))
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise _failed(partial, error) from error
        self._pending = self._worker.submit(self._finish, writer, partial, step, files)

    def wait(self) -> None:
        """Returns when the last save is on the disk. Raises OSError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _finish(self, writer: Any, partial: Path, step: int, files: dict[str, str]) -> None:
        try:
            writer.wait_until_finished()
            writer.close()
            if jax.process_index() == 0:
                _write(partial, files, step)
                _publish(partial, self._directory / f"{step:08d}")
                _prune(self._directory, step, self._keep)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise _failed(partial, error) from error

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=True)
        self.wait()


def _is_news(record: logging.LogRecord) -> bool:
    """Not the pages of tracebacks that are logged of what Orbax also raises, and `Saver` then says in one line; and not
    that files of a format that was not asked for (OCDBT) are missing.
    """
    text = record.getMessage()
    return "Skipping merge of OCDBT" not in text and (
        record.levelno < logging.ERROR or "orbax" not in record.pathname + text
    )


def _array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _items(state: State) -> dict[str, Any]:
    return {"params": state.params, "optimizer": {"opt_state": state.opt_state, "step": state.step}}


def _index(tree: Any) -> dict[str, list[Any]]:
    """{name of an array: [dtype, shape]}"""
    named = jax.tree_util.tree_leaves_with_path(tree)
    keystr = jax.tree_util.keystr
    return {keystr(path, simple=True, separator="."): [str(leaf.dtype), list(leaf.shape)] for path, leaf in named}


def _write(folder: Path, files: Mapping[str, str], step: int) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    held = {
        path.relative_to(folder).as_posix(): digest for path, digest in zip(written, _digests(written), strict=True)
    }
    (folder / _MANIFEST).write_bytes(json.dumps({"step": step, "files": held}, indent=1).encode())
    for path in (*written, folder / _MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def _digests(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The size and SHA-256 of each file, read by all cores, the largest first."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        largest_first = sorted(paths, key=lambda path: -path.stat().st_size)
        found = dict(zip(largest_first, pool.map(_digest, largest_first), strict=True))
    return [found[path] for path in paths]


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb", buffering=0) as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _publish(partial: Path, target: Path) -> None:
    if target.exists():
        _put_aside(target)
    os.rename(partial, target)
    sync(target.parent)


def _put_aside(folder: Path) -> None:
    aside = folder.with_name(f"abandoned-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)


def _prune(directory: Path, newest: int, keep: int) -> None:
    steps = _steps(directory)
    for step, folder in steps.items():
        if step > newest:
            _put_aside(folder)
    for step in sorted(step for step in steps if step <= newest)[:-keep]:
        shutil.rmtree(steps[step])


def _require_room(directory: Path, needed: int, step: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"disk full: the checkpoint of step {step} needs {needed} bytes, {free} are free; make room or keep fewer",
            str(directory),
        )


def _failed(partial: Path, error: Exception) -> OSError:
    """One line for whatever a write ran into; Orbax and its storage library raise many kinds."""
    text = " ".join(str(error).split())
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text
    step = int(partial.name.removeprefix(_PARTIAL))
    cause = "disk full, make room or keep fewer" if full else text[:300]
    code = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
    return OSError(
        code, f"the checkpoint of step {step} was not saved: {cause}; earlier steps stay", str(partial.parent)
    )


# --- reading ---------------------------------------------------------------------------------------------------------


def latest(directory: str | os.PathLike[str]) -> Checkpoint | None:
    """The newest step that is undamaged, or None where no step was ever saved.

    Warns of every damaged step that it passes over. Raises OSError if steps are there and all are damaged.
    """
    steps = _steps(Path(directory))
    for step in sorted(steps, reverse=True):
        damage = _damage(steps[step])
        if damage is None:
            return _read(steps[step])
        warnings.warn(f"checkpoint {damage}; going back to the step before", RuntimeWarning, stacklevel=2)
    if steps:
        raise OSError(errno.EIO, f"all {len(steps)} checkpoints are damaged; remove them to begin anew", str(directory))
    return None


def find(directory: str | os.PathLike[str], step: int | None = None) -> Checkpoint:
    """The checkpoint of a step, or the latest one.

    Raises FileNotFoundError where there is none, OSError where it is damaged, saying which file and how.
    """
    if step is None:
        found = latest(directory)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no checkpoint there", str(directory))
        return found
    steps = _steps(Path(directory))
    if step not in steps:
        raise FileNotFoundError(errno.ENOENT, f"no checkpoint of step {step}, only of {sorted(steps)}", str(directory))
    damage = _damage(steps[step])
    if damage is not None:
        raise OSError(errno.EIO, f"damaged: {damage}", str(steps[step]))
    return _read(steps[step])


def restore(checkpoint: Checkpoint, like: State) -> State:
    """The state of a checkpoint.

    like: a state, or one of ShapeDtypeStructs (`state_shapes`); where its leaves have a sharding, the arrays get it,
    otherwise they are put on the first device. Raises ValueError naming the first array that differs in name, dtype or
    shape: that of another model or optimizer.
    """
    _require_fit(checkpoint, _index(like), checkpoint.arrays)
    items = _restored(checkpoint, _items(like))
    return State(items["params"], items["optimizer"]["opt_state"], items["optimizer"]["step"])


def load_params(
    directory: str | os.PathLike[str], step: int | None = None, shardings: Any = None
) -> tuple[Spec, dict[str, Any]]:
    """(spec, params) of a step, by default the latest: float32, on the first device unless shardings are given."""
    checkpoint = find(directory, step)
    like = param_shapes(checkpoint.spec)
    if shardings is not None:
        like = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), like, shardings)
    held = {name: array for name, array in checkpoint.arrays.items() if name.startswith("params.")}
    _require_fit(checkpoint, _index({"params": like}), held)
    return checkpoint.spec, _restored(checkpoint, {"params": like})["params"]


def _steps(directory: Path) -> dict[int, Path]:
    if not directory.is_dir():
        return {}
    return {int(path.name): path.absolute() for path in directory.iterdir() if re.fullmatch("[0-9]+", path.name)}


def _damage(folder: Path) -> str | None:
    """The first thing that is wrong with a step, naming the file; None for nothing."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        files = {folder / name: (held["bytes"], held["sha256"]) for name, held in manifest["files"].items()}
        if manifest["step"] != int(folder.name):
            return f"{folder / _MANIFEST} is that of step {manifest['step']}"
        for path, (size, _) in files.items():
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != size:
                return f"{path} has {path.stat().st_size} bytes of {size}"
        for (path, (_, digest)), held in zip(files.items(), _digests(list(files)), strict=True):
            if held["sha256"] != digest:
                return f"{path} has other content than was written"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / _MANIFEST} is not a manifest"
    return None


def _read(folder: Path) -> Checkpoint:
    names = ("spec", "config", "data", "arrays")
    text = {name: (folder / f"{name}.json").read_bytes().decode() for name in names}
    tokenizer = {path.name: path.read_bytes().decode() for path in sorted((folder / "tokenizer").glob("*"))}
    return Checkpoint(
        path=folder,
        step=int(folder.name),
        spec=Spec.from_json(text["spec"]),
        tokenizer=tokenizer,
        data=json.loads(text["data"]),
        config=json.loads(text["config"]),
        arrays=json.loads(text["arrays"]),
    )


def _require_fit(checkpoint: Checkpoint, wanted: dict[str, list[Any]], held: dict[str, list[Any]]) -> None:
    for name in {**wanted, **held}:
        if wanted.get(name) != held.get(name):
            here, there = (_describe(arrays.get(name)) for arrays in (wanted, held))
            raise ValueError(
                f"{checkpoint.path}: array {name!r} is {there} in the checkpoint and {here} in the model and optimizer "
                "asked for; use those that it was saved with"
            )


def _describe(array: list[Any] | None) -> str:
    return "absent" if array is None else f"{array[0]} {array[1]}"


def _restored(checkpoint: Checkpoint, items: dict[str, Any]) -> Any:
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def read(path: Any, leaf: Any) -> jax.Array:
        item, *inside = path
        name = jax.tree_util.keystr(tuple(inside), simple=True, separator=".")
        folder = checkpoint.path / "state" / item.key / name
        return _array_of(folder, leaf.shape, np.dtype(leaf.dtype), getattr(leaf, "sharding", None) or one)

    return jax.tree_util.tree_map_with_path(read, items)


Box = tuple[tuple[int, int], ...]
"""A part of an array: where it begins and ends along each axis."""


def _array_of(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], sharding: jax.sharding.Sharding) -> jax.Array:
    """An array of a zarr folder: this process's shards, each read by all cores to where it stays on a CPU."""
    shards = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        box = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        shard = aligned(tuple(stop - start for start, stop in box), dtype)
        read_into(_pieces(folder, shape, box, shard))
        shards.append(jax.device_put(shard, device, may_alias=True))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _pieces(folder: Path, shape: tuple[int, ...], box: Box, shard: NDArray[Any]) -> Iterator[Target]:
    """The files of an array of this shape that hold parts of a box, each with where it goes in the shard, which is the
    box. A file that lies in the box in part is read here.
    """
    header = json.loads((folder / ".zarray").read_bytes())
    if header["compressor"] or header["filters"] or header["order"] != "C" or header["shape"] != list(shape):
        raise ValueError(f"{folder}: its array is stored in another way than archzoo does; restore it with Orbax")
    extents = header["chunks"]
    along = [range(start // n, -(-stop // n)) for (start, stop), n in zip(box, extents, strict=True)]
    for place in itertools.product(*along):
        file = folder / (".".join(map(str, place)) or "0")
        whole = Entry(file=file, dtype=shard.dtype, shape=tuple(extents), offset=0, size=file.stat().st_size)
        begins = [i * n for i, n in zip(place, extents, strict=True)]
        common = [(max(a, c), min(b, c + n)) for (a, b), c, n in zip(box, begins, extents, strict=True)]
        within: list[Any] = [slice(a - c, b - c) for (a, b), (c, _) in zip(common, box, strict=True)]
        here = shard[(*within, ...)]  # a view, also of a scalar
        if here.shape == whole.shape:
            yield whole, here
        else:
            there = tuple(slice(a - c, b - c) for (a, b), c in zip(common, begins, strict=True))
            here[...] = np.memmap(file, shard.dtype, mode="r", shape=whole.shape)[there]
