"""Numbers of four bits with a scale for each 32 of them: MXFP4 (OCP Microscaling Formats specification 1.0, 2023,
sections 5.3 and 6.3), as gpt-oss publishes its experts (OpenAI 2025, arXiv 2508.10925, section 2.1).

Dimensions: X experts, O outputs, I inputs = 32 N, N blocks, Y bytes of a block: 16, with two numbers in each.
"""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

BLOCK = 32
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What four bits say: a sign, two of exponent, one of mantissa."""


def shape_of(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """[X, I, O], of the shape of blocks [X, O, N, Y]."""
    return (blocks[0], BLOCK * blocks[2], blocks[1]) if len(blocks) == 4 else blocks


def dequantize_mxfp4(
    blocks_XONY: NDArray[Any],
    scales_XON: NDArray[Any],
    dtype: DTypeLike = ml_dtypes.bfloat16,
    *,
    name: str = "weight",
) -> NDArray[Any]:
    """The weights that uint8 blocks and scales stand for, [X, I, O] in `dtype`; bfloat16 holds them exactly.

    A byte holds two numbers, the first in its lower half; a scale is a power of two, its exponent plus 127, and 255 for
    none (NaN). Memory: the result, and one expert in float32. Raises a ValueError that calls the tensors
    `name`_blocks and `name`_scales, as the files do."""
    if blocks_XONY.dtype != np.uint8 or blocks_XONY.ndim != 4 or blocks_XONY.shape[-1] != BLOCK // 2:
        raise ValueError(
            f"{name}_blocks: expected uint8 [experts, out, in / {BLOCK}, {BLOCK // 2}], "
            f"got {blocks_XONY.dtype} {list(blocks_XONY.shape)}"
        )
    if scales_XON.dtype != np.uint8 or scales_XON.shape != blocks_XONY.shape[:-1]:
        raise ValueError(
            f"{name}_scales: expected uint8 {list(blocks_XONY.shape[:-1])}, a scale for each block, "
            f"got {scales_XON.dtype} {list(scales_XON.shape)}"
        )
    byte = np.arange(256)
    pairs = E2M1[np.stack([byte & 15, byte >> 4], axis=-1)]
    weights_XOI = np.empty((*scales_XON.shape[:2], BLOCK * scales_XON.shape[2]), dtype)
    for expert, (blocks_ONY, scales_ON) in enumerate(zip(blocks_XONY, scales_XON, strict=True)):
        scale_ON1 = np.ascontiguousarray(scales_ON).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)[..., None]
        numbers_ONi = pairs[blocks_ONY].reshape(*scales_ON.shape, BLOCK)
        weights_XOI[expert] = (numbers_ONi * scale_ON1).reshape(weights_XOI.shape[1:])
    return weights_XOI.swapaxes(1, 2)
