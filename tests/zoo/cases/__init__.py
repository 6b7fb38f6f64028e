"""The parity table as data: tiny configs of every family, one file each, spelt as published ones are, and weights that
follow from their names.

Between them the configs of a family use every variant that the family publishes and every field that changes its
mathematics. Some speak the dialect of transformers 4, some that of 5. Nothing here needs torch.
"""

import importlib
import json
import pkgutil
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

GOLDENS = Path(__file__).parent.parent / "goldens"

TOLERANCE = 1e-4
"""The largest error of a logit that is allowed, relative to the standard deviation of the logits; where the reference's
own float32 and float64 differ by more than a quarter of it, four times that difference.
"""

ZERO_CENTRED = ("gemma2", "gemma3_text", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next")
"""Families whose norms multiply by 1 + weight, but for those of linear attention."""

ONE_DIALECT = ("gemma4_text",)
"""Families younger than transformers 5, which is all that reads their ropes."""

IN_ONE_TENSOR = ("gpt_oss", "llama4_text", "mistral4")
"""Families that publish all experts of a layer in one tensor."""

BATCH, LENGTH = 2, 20
PROMPT, NEW = 9, 32
"""Logits are compared on BATCH rows of LENGTH tokens; greedy generation goes on from their first PROMPT tokens for NEW
more.
"""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A line of the table: `config` is what config.json holds."""

    name: str
    config: Mapping[str, Any]

    @property
    def family(self) -> str:
        return str(self.config["model_type"])

    @property
    def routed(self) -> bool:
        """Whether it has experts, published one by one."""
        names = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
        return not self.fused and any(field in self.config for field in names)

    @property
    def fused(self) -> bool:
        """Whether its experts are published in one tensor."""
        return self.family in IN_ONE_TENSOR or bool(self.config.get("enable_moe_block"))

    def tokens(self) -> Array:
        """int64 [BATCH, LENGTH]."""
        return _rng(self.name).integers(0, self.config["vocab_size"], (BATCH, LENGTH))

    def weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """float32 tensors of these names and shapes, tables of experts int64; all of them random, none at what a model
        starts with.
        """
        zero_centred = self.family in ZERO_CENTRED
        return {
            name: table(name, tuple(shape), self.config["n_routed_experts"])
            if name.endswith("tid2eid")
            else weight(name, tuple(shape), zero_centred)
            for name, shape in shapes.items()
        }

    def write(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """A checkpoint directory with config.json and the weights."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config, indent=2))
        save_file(self.weights(shapes), directory / "model.safetensors", metadata={"format": "pt"})


def weight(name: str, shape: tuple[int, ...], zero_centred: bool) -> Array:
    """A tensor whose random numbers follow from its name, of a size that keeps activations and logits ordinary."""
    noise = _rng(name).standard_normal(shape)
    if re.search(r"norm([._]\d)?\.weight$|layer_scalar$|router\.scale$|per_expert_scale$", name):
        noise = 0.2 * noise + (not zero_centred or ".linear_attn." in name)
    elif name.endswith("bias"):
        noise *= 0.3 if "e_score" in name else 0.1
    elif name == "model.embed_tokens.weight":
        noise *= 0.15
    elif not shape:  # what xIELU does not train: its slope, and how near to 0 it is computed
        noise *= 1e-6 if name.endswith("eps") else 0.3
    else:
        noise *= (2 if name == "lm_head.weight" else 1) * shape[-1] ** -0.5
    return np.asarray(noise, np.float32)


def table(name: str, shape: tuple[int, ...], experts: int) -> Array:
    """int64 [vocab, top_k]: different experts for each token."""
    return np.argsort(_rng(name).random((shape[0], experts)), axis=1)[:, : shape[1]].astype(np.int64)


def tolerance(float64_difference: float) -> float:
    return max(TOLERANCE, 4 * float64_difference)


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


FILES = [file.name for file in pkgutil.iter_modules(__path__) if file.name != "common"]
CONFIGS: dict[str, dict[str, Any]] = {
    name: config for file in FILES for name, config in importlib.import_module(f".{file}", __name__).CONFIGS.items()
}
CASES = tuple(Case(name=name, config=config) for name, config in CONFIGS.items())

FIRST = tuple({case.family: case for case in reversed(CASES)}.values())
"""A case of each family, which the default suite runs; the slow one runs all."""
