"""DeepSeek-V4's checkpoints as DeepSeek publishes them (huggingface.co/deepseek-ai/DeepSeek-V4-Flash, 2026: its index
and inference/convert.py), told in the names that transformers writes.

There nothing is called `model.`, and `X.scale` beside `X.weight` is how that is quantised: float8_e4m3fn [out, in] with
a scale for each block of the config's weight_block_size, or of experts int8 [out, in / 2], numbers of four bits, two in
a byte, with a scale for each 32 along `in`. Scales are powers of two (float8_e8m0fnu), or float32 in a checkpoint whose
experts are float8 too. Modules of multi-token prediction, `mtp.`, keep their names: they are not read.
"""

import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from .mxfp4 import BLOCK
from .tensors import Entry, of_four_bits

MARK = "hc_head_fn"
"""A tensor that only these checkpoints have."""

NAMES = (
    (r"embed\.weight", "model.embed_tokens.weight"),
    (r"norm\.weight", "model.norm.weight"),
    (r"hc_head_(fn|base|scale)", r"model.hc_head.hc_\1"),
    (r"(layers\.\d+\.attn)\.kv_norm\.weight", r"model.\1.norm.weight"),
    (r"(layers\..*)\.scale", r"model.\1.weight_scale_inv"),
    (r"(layers\..*)", r"model.\1"),
)
"""A name as published, and as transformers writes it; the first that fits. Others are the same, `head.weight` too."""


def written(name: str) -> str:
    """What transformers writes for a published name."""
    found = ((re.fullmatch(pattern, name), new) for pattern, new in NAMES)
    return next((match.expand(new) for match, new in found if match), name)


def as_written(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The tensors of a checkpoint under the names that transformers writes, scales as `X.weight_scale_inv`; other
    checkpoints as they are.

    Raises ValueError for a tensor that is there under both names, and for integers that are not numbers of four bits.
    """
    if MARK not in entries:
        return dict(entries)
    found: dict[str, Entry] = {}
    for name, entry in entries.items():
        new = written(name)
        if new != name and new in entries:
            raise ValueError(f"{entry.file}: tensors {name!r} and {new!r} are the same one; keep one of them")
        of_experts = new != name and name.endswith(".weight") and entry.dtype == np.int8
        if of_experts:
            _check_four_bits(name, entry, entries.get(name.removesuffix("weight") + "scale"))
        found[new] = of_four_bits(entry) if of_experts else entry
    return found


def _check_four_bits(name: str, entry: Entry, scales: Entry | None) -> None:
    per_row = 2 * entry.shape[-1] / BLOCK if len(entry.shape) == 2 else 0
    expected = (np.dtype(ml_dtypes.float8_e8m0fnu), (*entry.shape[:1], per_row))
    if scales is None or (scales.dtype, scales.shape) != expected:
        got = "none" if scales is None else f"{scales.dtype} {list(scales.shape)}"
        raise ValueError(
            f"{entry.file}: tensor {name!r} is int8 {list(entry.shape)}, read as two numbers of four bits in a byte, "
            f"but its scales are {got} where float8_e8m0fnu [out, in / {BLOCK}] is expected; take the checkpoint that "
            "deepseek-ai publishes, or one in bfloat16"
        )
