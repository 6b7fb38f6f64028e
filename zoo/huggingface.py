"""Hugging Face checkpoints both ways: directories to parameters and back, from the weight maps of the pages.

Strict: nothing that is read is overlooked, nothing that is missing is made up. Streaming: memory is that of the
parameters and one tensor.
"""

import fnmatch
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ..layers.accounting import leaves
from ..layers.decoder import Origin, Spec
from ..layers.hashed import TABLE
from ..sharding.rules import Rules
from .configs import CONFIG, read_config, spec_from_hf, spec_to_hf
from .export_files import LazyTensor, write_checkpoint
from .family import Family
from .mxfp4 import dequantize_mxfp4, shape_of
from .registry import FAMILIES
from .tensors import Checkpoint, Target, aligned, dequantize_blocks, open_checkpoint, read_into
from .tensors import Entry as Place
from .weights import Entry, Row, and_more, copies, entries, is_of_module, modules_in, parse

INERT_TENSORS = re.compile(r".*\.rotary_emb\.inv_freq")
"""Buffers in older checkpoints that follow from the config."""

FLOATS = tuple(np.dtype(kind) for kind in (np.float32, ml_dtypes.bfloat16, np.float16))
"""What parameters may be."""

INTEGERS = tuple(np.dtype(kind) for kind in (np.int64, np.int32))
"""What tables are in files, first as they are written; as parameters they are float32 (layers/hashed.py)."""

Path_ = tuple[str, ...]

# --- import ----------------------------------------------------------------------------------------------------------


def load_hf(
    directory: str | os.PathLike[str],
    dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    ignore: Sequence[str] = (),
    text_only: bool = False,
) -> tuple[Spec, Any]:
    """The spec and parameters of a Hugging Face directory; (spec, params).

    dtype: float32, bfloat16 or float16 for all parameters; None keeps each tensor's own.
    mesh, rules: where the parameters are to lie, by default on one device.
    ignore: config fields and tensors (shell patterns) to leave out.
    text_only: of a multimodal checkpoint, the language model.

    Memory: the parameters and one tensor; on one CPU device only the parameters, unless it dequantises.
    Raises ValueError naming the file and the tensor for anything unmapped, missing, double, or of the wrong shape or
    type."""
    if dtype not in (None, *map(str, FLOATS)):
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(map(str, FLOATS))}")
    spec = spec_from_hf(directory, ignore, text_only)
    assert spec.hf is not None
    checkpoint, family = open_checkpoint(directory), FAMILIES[spec.hf.family]
    if family.renamed is not None:
        checkpoint = replace(checkpoint, entries=family.renamed(checkpoint.entries))
    names = _names(checkpoint, family, tuple(ignore), text_only)
    spec = _with_present_predictor(spec, family, names)
    spec = _without_absent_predictor(spec, family, names, checkpoint.root)
    plan = _plan(spec, family, names)
    quantization = read_config(directory)[0].get("quantization_config")
    source = _Source(checkpoint, names, _quantisation(quantization, checkpoint.root))
    _check(source, plan, spec, family.weights)

    dtypes = {leaf.path: np.dtype(dtype) for leaf in leaves(spec)} if dtype else _dtypes(source, plan)
    dtypes |= {path: np.dtype(np.float32) for path in dtypes if _is_table(path)}
    if mesh is None and _is_on_cpu(jnp.zeros(())):
        return spec, _tree(_on_host({leaf.path: leaf.shape for leaf in leaves(spec)}, dtypes, source, plan))
    params: dict[Path_, jax.Array] = {}
    for leaf in leaves(spec):
        sharding = None if mesh is None else NamedSharding(mesh, (rules or Rules()).partition(leaf.axes, mesh))
        zeros = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)
        params[leaf.path] = zeros(leaf.shape, dtypes[leaf.path])
    for entry in plan.values():
        for part, piece in zip(entry.parts, entry.split(source.read(entry.name)), strict=True):
            params[part.path] = _fill(params[part.path], piece, part.place)
    return spec, _tree(params)


def _on_host(
    shapes: Mapping[Path_, tuple[int, ...]],
    dtypes: Mapping[Path_, np.dtype[Any]],
    source: "_Source",
    plan: Mapping[str, Entry],
) -> dict[Path_, jax.Array]:
    """The parameters on a CPU: read to where they stay, which JAX takes over as it is."""
    arrays = {path: aligned(shape, dtypes[path]) for path, shape in shapes.items()}
    targets: list[Target] = []
    for name, entry in plan.items():
        views = [_view(arrays[part.path], part.place) for part in entry.parts]
        if name in source.scales:
            for view, piece in zip(views, entry.split(source.read(name)), strict=True):
                view[...] = piece
        else:
            targets += _targets(entry, views, source.place(name))
    read_into(targets)
    return {path: jax.device_put(array, may_alias=True) for path, array in arrays.items()}


def _targets(entry: Entry, views: Sequence[np.ndarray[Any, Any]], place: Place) -> Iterator[Target]:
    """What of a tensor goes to which part of its parameters: all of it to the only one, otherwise a block of each
    parameter in turn for every index before the concatenation.
    """
    layout, start = parse(entry.layout), place.offset
    joined = list(zip(entry.parts, views, layout.alternatives, strict=True))
    sizes = dict(zip(entry.parts[0].axes, entry.parts[0].shape, strict=True))
    for index in np.ndindex(*(sizes[axis] for axis in layout.before if len(joined) > 1)):
        for part, view, alternative in joined:
            axes = [part.axes.index(axis) for axis in layout.before + alternative + layout.after]
            block = _view(view.transpose(axes), index)
            size = block.size * place.dtype.itemsize
            yield replace(place, shape=block.shape, offset=start, size=size), block
            start += size


def _view(array: np.ndarray[Any, Any], index: tuple[int, ...]) -> np.ndarray[Any, Any]:
    whole: tuple[Any, ...] = (*index, ...)  # or what is left of an array without axes would be a copy
    view: np.ndarray[Any, Any] = array[whole]
    return view


def _is_on_cpu(array: jax.Array) -> bool:
    """Whether it lies on one CPU device, so in memory that NumPy sees."""
    return [device.platform for device in array.devices()] == ["cpu"]


class _Quantisation(NamedTuple):
    """How a checkpoint holds the tensors that it quantises: in two, named by these endings; the shape of what they
    stand for, given the first one's, and that itself in bfloat16.
    """

    first: str
    scales: str
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    read: Callable[..., np.ndarray[Any, Any]]


class _Source:
    """A checkpoint by the names of the weight map, what it quantises dequantised as it is read."""

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str], quantisation: _Quantisation | None) -> None:
        self.checkpoint, self.quantisation = checkpoint, quantisation
        self.scales: dict[str, str] = {}
        self.names = dict(names)
        if quantisation is None:
            return
        for name in names:
            plain = name.removesuffix(quantisation.first)
            if name.endswith(quantisation.first) and plain + quantisation.scales in names:
                self.scales[plain] = names[plain + quantisation.scales]
                self.names[plain] = names[name]
        stored = {name + end for name in self.scales for end in (quantisation.first, quantisation.scales)}
        self.names = {name: real for name, real in self.names.items() if name in self.scales or name not in stored}

    def shape(self, name: str) -> tuple[int, ...]:
        stored = self.checkpoint.shape(self.names[name])
        return self.quantisation.shape(stored) if self.quantisation and name in self.scales else stored

    def dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(ml_dtypes.bfloat16) if name in self.scales else self.checkpoint.dtype(self.names[name])

    def place(self, name: str) -> Place:
        return self.checkpoint.entries[self.names[name]]

    def where(self, name: str) -> str:
        return f"{self.checkpoint.file(self.names[name])}: tensor {self.names[name]!r}"

    def read(self, name: str) -> np.ndarray[Any, Any]:
        tensor = self.checkpoint.read(self.names[name])
        if self.quantisation is None or name not in self.scales:
            return tensor
        file, plain = self.checkpoint.file(self.names[name]), self.names[name].removesuffix(self.quantisation.first)
        return self.quantisation.read(tensor, self.checkpoint.read(self.scales[name]), name=f"{file}: tensor {plain!r}")


def _names(checkpoint: Checkpoint, family: Family, ignore: tuple[str, ...], text_only: bool) -> dict[str, str]:
    """Names of the weight map -> names in the checkpoint; refuses a name that two tensors would have."""
    left_out: list[str] = []
    found: dict[str, str] = {}
    prefixes = family.wrapper.prefixes if family.wrapper and text_only else {}
    for real in checkpoint:
        if INERT_TENSORS.fullmatch(real) or any(fnmatch.fnmatch(real, pattern) for pattern in ignore):
            continue
        if family.wrapper and text_only and real.startswith(family.wrapper.left_out):
            left_out.append(real)
            continue
        prefix = next((p for p in prefixes if real.startswith(p)), None)
        name = real if prefix is None else prefixes[prefix] + real.removeprefix(prefix)
        if name in found:
            raise ValueError(
                f"{checkpoint.file(real)}: tensors {found[name]!r} and {real!r} are the same one; keep one of them"
            )
        found[name] = real
    if family.wrapper and left_out:
        groups = [group[:-1] for group in family.wrapper.left_out if any(name.startswith(group) for name in left_out)]
        warnings.warn(
            f"{checkpoint.root}: text_only leaves out {len(left_out)} tensors under {', '.join(groups)}", stacklevel=3
        )
    return found


def _with_present_predictor(spec: Spec, family: Family, names: Iterable[str]) -> Spec:
    """The spec with the modules of multi-token prediction that the checkpoint has, where its config counts none: some
    published configs do not say.
    """
    count = modules_in(names, family.weights) if spec.mtp is None and family.counted else 0
    if not count:
        return spec
    assert spec.hf is not None
    counted = spec_from_hf({**json.loads(spec.hf.config), family.counted: count}, tuple(json.loads(spec.hf.config)))
    return spec.replace(mtp=counted.mtp)


def _without_absent_predictor(spec: Spec, family: Family, names: Iterable[str], root: Path) -> Spec:
    """The spec without multi-token prediction if the checkpoint has no tensor of it, as those that transformers saves;
    their configs still count its modules.
    """
    alone = spec.replace(mtp=None)
    if spec.mtp is None:
        return spec
    rows = family.weights
    of_it = entries(spec, rows).keys() - entries(alone, rows).keys() | copies(spec, rows).keys()
    if of_it & set(names):
        return spec
    warnings.warn(
        f"{root}: no tensors of multi-token prediction, of which the config counts {spec.mtp.depth}; read without it",
        stacklevel=3,
    )
    return alone


def _plan(spec: Spec, family: Family, names: Iterable[str]) -> dict[str, Entry]:
    """The tensors to read: the published row set, or the fused one where its names are there; of a model and of its
    modules of multi-token prediction apart, which some publish in different ways.
    """
    present, rows = set(names), family.weights
    plan = entries(spec, rows)
    for of_module in (False, True):
        fused = tuple(row for row in family.fused if is_of_module(row) == of_module)
        if not fused or plan.keys() <= present:
            continue
        replaced = {parameter for row in fused for parameter in row.parameters}
        others = tuple(row for row in rows if not replaced & set(row.parameters)) + fused
        found = entries(spec, others)
        if any(name in present for name in found.keys() - plan.keys()):
            plan, rows = found, others
    return plan


def _check(source: _Source, plan: Mapping[str, Entry], spec: Spec, weight_map: Sequence[Row]) -> None:
    """Refuses missing and unmapped tensors, wrong shapes and types, and a tied head that is not the embedding."""
    root, names = source.checkpoint.root, source.names
    missing = [name for name in plan if name not in names]
    if missing:
        raise ValueError(f"{root}: tensor {missing[0]!r} is missing{and_more(missing)}; the config asks for it")
    extra = [name for name in names if name not in plan]
    if spec.tied and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        if not _same(source.read("model.embed_tokens.weight"), source.read("lm_head.weight")):
            raise ValueError(
                f"{source.where('lm_head.weight')} differs from the embedding, but the config ties them "
                "(tie_word_embeddings); if it is the true head, set that to false"
            )
    for name, of in copies(spec, weight_map).items():
        if name in extra:
            extra.remove(name)
            if not _same(source.read(name), source.read(of)):
                raise ValueError(
                    f"{source.where(name)} differs from {of!r}, which multi-token prediction shares with the model; "
                    f"to leave it out pass ignore=({name!r},)"
                )
    if extra:
        layer = re.match(r"model\.layers\.(\d+)\.", extra[0])
        beyond = layer is not None and int(layer.group(1)) >= spec.depth
        hint = " (a layer beyond the model's depth, as those of multi-token prediction are)" if beyond else ""
        pattern = f"{layer.group()}*" if layer is not None and beyond else extra[0]
        if predicting := re.match(r"(model\.)?mtp(?=[._])", extra[0]):
            hint, pattern = " (of multi-token prediction, which is not read as it is here)", f"{predicting.group()}*"
        raise ValueError(
            f"{source.where(extra[0])} is not mapped to any parameter{and_more(extra)}{hint}; "
            f"to leave it out pass ignore=({pattern!r},)"
        )
    for name, entry in plan.items():
        if source.shape(name) != entry.shape:
            raise ValueError(f"{source.where(name)} has shape {source.shape(name)}; the config asks for {entry.shape}")
        kinds = INTEGERS if _is_table(entry.parts[0].path) else FLOATS
        if source.dtype(name) not in kinds:
            expected = ", ".join(map(str, kinds))
            raise ValueError(f"{source.where(name)} has type {source.dtype(name)}; expected one of {expected}")


def _is_table(path: Path_) -> bool:
    """Whether the parameter holds whole numbers."""
    return path[-1] == TABLE


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two tensors are equal bit for bit; a block at a time, for they may be large."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    x, y = (tensor.reshape(-1).view(np.uint8) for tensor in (a, b))
    return all(np.array_equal(x[i : i + 2**24], y[i : i + 2**24]) for i in range(0, x.size, 2**24))


def _dtypes(source: _Source, plan: Mapping[str, Entry]) -> dict[Path_, np.dtype[Any]]:
    """The type of each parameter: that of its tensors, which must agree."""
    found: dict[Path_, tuple[np.dtype[Any], str]] = {}
    for name, entry in plan.items():
        for part in entry.parts:
            kind, first = found.setdefault(part.path, (source.dtype(name), name))
            if source.dtype(name) != kind:
                raise ValueError(
                    f"{source.where(name)} has type {source.dtype(name)}, but {first!r} of the same parameter has "
                    f"{kind}; pass a dtype to have all in one"
                )
    return {path: kind for path, (kind, _) in found.items()}


def _quantisation(config: Any, root: Path) -> _Quantisation | None:
    """How a checkpoint is quantised. Raises ValueError for a way that is not read."""
    match config:
        case None:
            return None
        case {"quant_method": "fp8", "weight_block_size": [int(height), int(width)]}:
            read = partial(dequantize_blocks, block=(height, width), dtype=ml_dtypes.bfloat16)
            return _Quantisation("", "_scale_inv", lambda shape: shape, read)
        case {"quant_method": "mxfp4"}:
            return _Quantisation("_blocks", "_scales", shape_of, dequantize_mxfp4)
    raise ValueError(
        f"{root}: config field 'quantization_config' is {config!r:.120}, which is not supported; "
        "supported: quant_method mxfp4, or fp8 with a weight_block_size of two integers"
    )


def _fill(leaf: jax.Array, piece: np.ndarray[Any, Any], index: tuple[int, ...]) -> jax.Array:
    """The leaf with a piece of it written in place, whichever way it is sharded; waits, so that one piece at a time is
    in memory.
    """
    return _setter(leaf.sharding)(leaf, piece, np.asarray(index, np.int32)).block_until_ready()


@cache
def _setter(sharding: jax.sharding.Sharding) -> Callable[..., jax.Array]:
    def put(leaf: jax.Array, piece: jax.Array, index: jax.Array) -> jax.Array:
        start = [*index, *[0] * (leaf.ndim - index.shape[0])]
        piece = piece.reshape((1,) * (leaf.ndim - piece.ndim) + piece.shape).astype(leaf.dtype)
        return jax.lax.dynamic_update_slice(leaf, piece, start)

    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


def _tree(flat: Mapping[Path_, Any]) -> Any:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = value
    return tree


# --- export ----------------------------------------------------------------------------------------------------------


def save_hf(
    directory: str | os.PathLike[str], spec: Spec, params: Any, tokenizer: Any = None, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Writes a Hugging Face directory: safetensors as published checkpoints hold them, config.json,
    generation_config.json.

    tokenizer: anything with `save(directory)` or `save_pretrained(directory)`; its files are written beside.
    Memory: the parameters and one tensor. The directory is written whole or not at all. Raises ValueError for a spec
    that Hugging Face cannot hold and for parameters that do not fit the spec."""
    config = spec_to_hf(spec)
    origin = spec.hf or Origin(family=str(config["model_type"]))
    family = FAMILIES[config["model_type"]]
    flat = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for leaf in leaves(spec):
        name, found = "/".join(leaf.path), flat.get(leaf.path)
        if found is None:
            raise ValueError(f"parameter {name} of the spec is missing")
        if found.shape != leaf.shape:
            raise ValueError(f"parameter {name} has shape {found.shape}; the spec asks for {leaf.shape}")
        if found.dtype not in FLOATS:
            raise ValueError(f"parameter {name} has type {found.dtype}; expected one of {', '.join(map(str, FLOATS))}")
    extra = flat.keys() - {leaf.path for leaf in leaves(spec)}
    if extra:
        raise ValueError(f"parameter {'/'.join(min(extra))} is not in the spec")

    key = "dtype" if origin.dialect >= 5 else "torch_dtype"
    config.pop("torch_dtype" if key == "dtype" else "dtype", None)
    config[key] = str(flat[("embed_VD",)].dtype)
    tokens = {
        name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(name) is not None
    }
    files: dict[str, bytes | str] = {
        CONFIG: json.dumps(config, indent=2) + "\n",
        "generation_config.json": json.dumps({"_from_model_config": True, **tokens}, indent=2) + "\n",
        **_tokenizer_files(tokenizer),
    }
    tensors = {name: _lazy(entry, flat) for name, entry in entries(spec, family.weights).items()}
    tensors |= {name: replace(tensors[of], name=name) for name, of in copies(spec, family.weights).items()}
    write_checkpoint(directory, list(tensors.values()), max_shard_bytes=max_shard_bytes, files=files)


def _lazy(entry: Entry, flat: Mapping[Path_, jax.Array]) -> LazyTensor:
    first = entry.parts[0].path
    if _is_table(first):
        kind = INTEGERS[0]
        whole = lambda: _piece(flat[first], entry.parts[0].place).astype(kind)  # noqa: E731
        return LazyTensor(name=entry.name, shape=entry.shape, dtype=kind, read=whole)
    kinds = {"/".join(part.path): flat[part.path].dtype for part in entry.parts}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"tensor {entry.name!r} joins parameters of several types: "
            f"{', '.join(f'{name} {kind}' for name, kind in kinds.items())}; cast them to one"
        )

    def read() -> np.ndarray[Any, Any]:
        pieces = [_piece(flat[part.path], part.place) for part in entry.parts]
        if len(pieces) > 1:
            return entry.join(pieces)
        axes = [entry.parts[0].axes.index(axis) for axis in parse(entry.layout).before]
        return pieces[0].transpose(axes).reshape(entry.shape)  # a view: merged axes lie together in parameters too

    return LazyTensor(name=entry.name, shape=entry.shape, dtype=flat[entry.parts[0].path].dtype, read=read)


def _piece(leaf: jax.Array, index: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """One layer's, one expert's part of a stacked parameter, on the host; a view where the parameter lies there
    already.
    """
    if isinstance(leaf, jax.Array) and len(leaf.devices()) > 1:
        return _joined(leaf, index)
    if isinstance(leaf, jax.Array) and not _is_on_cpu(leaf):
        for i in index:
            leaf = jax.lax.dynamic_index_in_dim(leaf, i, 0, keepdims=False)
        return np.asarray(leaf)
    piece: np.ndarray[Any, Any] = np.asarray(leaf)[index]
    return piece


def _joined(leaf: jax.Array, index: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The same of a parameter that lies in parts on several devices, put together on the host: no device gets more than
    it has. Raises ValueError where some are another process's.
    """
    if not leaf.is_fully_addressable:
        raise ValueError(
            "the parameters lie on devices of several processes, of which each sees its own; "
            "let the run save a checkpoint, and export that"
        )
    piece = np.empty(leaf.shape[len(index) :], leaf.dtype)
    for shard in leaf.addressable_shards:
        first = [part.indices(size)[:2] for part, size in zip(shard.index, leaf.shape, strict=True)][: len(index)]
        if shard.replica_id == 0 and all(start <= i < stop for i, (start, stop) in zip(index, first, strict=True)):
            own = tuple(i - start for i, (start, _) in zip(index, first, strict=True))
            piece[shard.index[len(index) :]] = _piece(shard.data, own)
    return piece


def _tokenizer_files(tokenizer: Any) -> dict[str, bytes | str]:
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        (tokenizer.save_pretrained if hasattr(tokenizer, "save_pretrained") else tokenizer.save)(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
