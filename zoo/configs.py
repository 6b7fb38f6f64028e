"""Configs both ways: a Hugging Face config to a spec, and a spec to the config that says the same, or a refusal.

A config is read by its family's page, and nothing in it is overlooked. What a page writes is read back: a spec is
written only if that gives the same spec again, so an ablation that Hugging Face cannot hold is refused by its first
difference.
"""

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..layers.decoder import Layer, Origin, Spec
from ..layers.spec import paths
from .family import Family
from .fields import INERT, Fields
from .registry import FAMILIES
from .tensors import strict_json

CONFIG = "config.json"

OUTER = ("bos_token_id", "eos_token_id", "tie_word_embeddings", "torch_dtype", "dtype", "transformers_version")
"""Fields that a multimodal config has beside its text_config and that hold for that too."""


def spec_from_hf(
    config: Mapping[str, Any] | str | os.PathLike[str], ignore: Sequence[str] = (), text_only: bool = False
) -> Spec:
    """The Spec of a config: a dict, a directory that holds config.json, or the file.

    ignore: names of fields to leave unread.  text_only: of a multimodal config, the language model.
    Raises ValueError naming the field that is missing, unknown or unsupported, or the nearest supported model_type.
    """
    fields, where = read_config(config)
    try:
        family, fields = _family_of(fields, text_only)
        return _read(family, fields, tuple(ignore))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def spec_to_hf(spec: Spec, dialect: int | None = None) -> dict[str, Any]:
    """The Hugging Face config of a spec, with model_type, in the dialect of transformers 4 or 5 (None: the one it
    came in, else 4).

    A field that still means what the original config said keeps its spelling. Raises ValueError naming the first
    difference when Hugging Face has no such model."""
    names = [spec.hf.family] if spec.hf else list(FAMILIES)
    reasons = {}
    for name in names:
        if name not in FAMILIES:
            raise ValueError(f"spec.hf names the family {name!r}; the zoo has {', '.join(FAMILIES)}")
        try:
            return _write(FAMILIES[name], spec, dialect)
        except ValueError as error:
            reasons[name] = str(error)
    reason = reasons[names[0]] if len(names) == 1 else f"it is none of {', '.join(names)}"
    raise ValueError(f"Hugging Face cannot hold this model: {reason}")


def read_config(config: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[Mapping[str, Any], str]:
    if isinstance(config, Mapping):
        return config, "config"
    path = Path(config)
    path = path / CONFIG if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a Hugging Face model directory holds a {CONFIG}")
    return strict_json(path, path.read_bytes()), str(path)


def _family_of(config: Mapping[str, Any], text_only: bool) -> tuple[Family, Mapping[str, Any]]:
    """The family of a config, and its language model's part of it."""
    kind = config.get("model_type")
    for family in FAMILIES.values():
        if kind in (family.name, *family.aliases):
            return family, config
        if family.wrapper and kind == family.wrapper.model_type:
            if not text_only:
                raise ValueError(
                    f"model_type {kind!r} is multimodal; pass text_only=True to take its language model alone"
                )
            text = Fields(config).nested("text_config").config
            return family, {**{key: config[key] for key in OUTER if key in config}, **text, "model_type": family.name}
    known = [name for family in FAMILIES.values() for name in (family.name, *family.aliases)]
    near = difflib.get_close_matches(str(kind), known, 1, cutoff=0) or known[:1]
    raise ValueError(
        f"model_type {kind!r} is not supported; the nearest that is: {near[0]!r} (all: {', '.join(known)})"
    )


def _read(family: Family, config: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> Spec:
    fields = Fields(config)
    for name, value in family.fixed.items():
        fields.only(name, value)
    spec = family.read(fields)
    fields.finish(INERT | family.inert, ignore)
    version = str(config.get("transformers_version", ""))
    dialect = 5 if "rope_parameters" in config or version.startswith("5") else 4
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    return spec.replace(hf=Origin(family=family.name, dialect=dialect, config=json.dumps(kept)))


def _write(family: Family, spec: Spec, dialect: int | None) -> dict[str, Any]:
    origin = spec.hf or Origin(family=family.name)
    dialect = dialect or origin.dialect
    head = {"architectures": [family.architecture], "model_type": family.name}
    original = json.loads(origin.config)
    if original and dialect == origin.dialect and not _difference(family, {**original, **head}, spec):
        return {**original, **head}
    try:
        out = {**head, **family.write(spec, dialect), **family.fixed}
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError) as error:
        raise ValueError(f"a {family.name} has no such layer ({error})") from None
    difference = _difference(family, out, spec)
    if difference:
        raise ValueError(difference)
    if original and dialect == origin.dialect:
        for key, value in original.items():
            trial = {**out, key: value}
            if key not in head and not _difference(family, trial, spec):
                out = trial
        for key in [key for key in out if key not in original and key not in head]:
            trial = {k: v for k, v in out.items() if k != key}
            if not _difference(family, trial, spec):
                out = trial
    return out


def _difference(family: Family, config: Mapping[str, Any], spec: Spec) -> str:
    """The first path at which a config reads otherwise than the spec, in words; empty if it reads the same."""
    try:
        read = _read(family, config)
    except ValueError as error:
        return str(error)
    if spec.mtp is None:  # a config may count modules that a checkpoint has not: it is read as this spec all the same
        read = read.replace(mtp=None)
    if (read.layers, read.replace(attention=spec.attention, mlp=spec.mlp, block=spec.block)) == (spec.layers, spec):
        return ""
    ours, theirs = _by_depth(spec), _by_depth(read)
    for path in [*ours, *theirs]:
        mine, found = (side.get(path, "absent") for side in (ours, theirs))
        if mine != found:
            return f"a {family.name} cannot have {path} = {mine!r}: it would be read as {found!r}"
    return f"a {family.name} has no layers of these kinds"


def _by_depth(spec: Spec) -> dict[str, Any]:
    """The paths of a spec and their values, those of layers by depth, so that other patterns of the same layers are
    equal.
    """
    found = {path: value for path, value in spec.paths().items() if not path.startswith(Layer._fields)}
    for depth, layer in enumerate(spec.layers):
        for part, of in zip(Layer._fields, layer, strict=True):
            kind = {f"{part} of layer {depth}": type(of).__name__}
            found |= kind | {f"{part}.{path} of layer {depth}": value for path, value in paths(of).items()}
    return found
