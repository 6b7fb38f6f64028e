"""archzoo: every modern LLM architecture as pure functions. The public names, imported when first used."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Spec": "layers.decoder",
    "Decoder": "layers.decoder",
    "init_cache": "layers.decoder",
    "Execution": "layers.execution",
    "axes": "layers.accounting",
    "generate": "layers.decoding",
    "Rules": "sharding.rules",
    "make_mesh": "sharding.rules",
    "restart": "train.allocator",
    "MODELS": "zoo.registry",
    "FAMILIES": "zoo.registry",
    "spec_from_hf": "zoo.configs",
    "spec_to_hf": "zoo.configs",
    "load_hf": "zoo.huggingface",
    "save_hf": "zoo.huggingface",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """`import archzoo` loads neither jax nor any room; a name loads its own."""
    if name not in _HOMES:
        raise AttributeError(f"module 'archzoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
