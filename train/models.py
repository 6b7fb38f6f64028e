"""Anything a user can name as a model: a preset, a run of `archzoo train`, a Hugging Face directory, a spec in a
JSON file.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ..layers.accounting import axes
from ..layers.decoder import Decoder, Spec
from ..sharding.rules import Rules
from ..zoo.configs import spec_from_hf
from ..zoo.huggingface import load_hf
from ..zoo.registry import MODELS
from .checkpoint import find, load_params
from .tokenizer import Tokenizer, bytes_tokenizer, load


@dataclass(frozen=True, kw_only=True)
class Model:
    """A named model. load: its parameters; given a mesh and rules, spread over that.

    trained: whether they come from a checkpoint, not from initialisation.  tokens: the folder of its tokenizer, which
    need not be there; None for one of bytes.
    """

    name: str
    spec: Spec
    load: Callable[..., Any]
    trained: bool
    tokens: Path | None

    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer, None where a checkpoint has none."""
        if self.tokens is None:
            return bytes_tokenizer()
        return load(self.tokens) if (self.tokens / "tokenizer.json").is_file() else None

    def text(self) -> Tokenizer:
        """Its tokenizer, to work with text. Raises ValueError where it has none."""
        found = self.tokenizer()
        if found is None:
            raise ValueError(f"{self.tokens} has no tokenizer.json, which text needs; save the model's tokenizer there")
        return found


def open_model(name: str, changes: Mapping[str, Any] | None = None, text_only: bool = False) -> Model:
    """The model of this name, its spec edited by path where `changes` says so (only of a model without parameters).

    Raises ValueError naming the nearest preset for a name that is nothing, and whatever is wrong with a directory.
    """
    path = Path(name)
    if name in MODELS:
        return _untrained(name, MODELS[name].replace(changes))
    if path.suffix == ".json" and path.is_file() and path.name != "config.json":
        return _untrained(path.stem, Spec.from_json(path.read_text("utf-8")).replace(changes))
    if not path.is_dir():
        near = difflib.get_close_matches(name, MODELS, 1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"no model {name!r}: {hint}`archzoo list` names the presets; a run or a Hugging Face directory will do too"
        )
    if changes:
        raise ValueError(
            f"{name} has parameters, which a changed spec ({', '.join(changes)}) would not fit; change a preset instead"
        )
    steps = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if (path / "config.json").is_file():
        return Model(
            name=name,
            spec=spec_from_hf(path, text_only=text_only),
            load=lambda mesh=None, rules=None: load_hf(path, mesh=mesh, rules=rules, text_only=text_only)[1],
            trained=True,
            tokens=path,
        )
    checkpoint = find(steps)
    return Model(
        name=name,
        spec=checkpoint.spec,
        load=lambda mesh=None, rules=None: load_params(steps, shardings=_shardings(checkpoint.spec, mesh, rules))[1],
        trained=True,
        tokens=checkpoint.path / "tokenizer",
    )


def _shardings(spec: Spec, mesh: Mesh | None, rules: Rules | None) -> Any:
    return None if mesh is None else (rules or Rules()).shardings(axes(spec), mesh)


def _untrained(name: str, spec: Spec) -> Model:
    return Model(
        name=name,
        spec=spec,
        load=lambda mesh=None, rules=None: _drawn(spec, mesh, rules),
        trained=False,
        tokens=None,
    )


def _drawn(spec: Spec, mesh: Mesh | None, rules: Rules | None) -> Any:
    def params() -> Any:
        return Decoder(spec).init(jax.random.key(0), None)["params"]

    return params() if mesh is None else jax.jit(params, out_shardings=_shardings(spec, mesh, rules))()
