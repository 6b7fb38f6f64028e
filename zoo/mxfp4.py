"""Numbers of four bits with a scale for each 32 of them: MXFP4 (OCP Microscaling Formats specification 1.0, 2023,
sections 5.3 and 6.3), as gpt-oss publishes its experts (OpenAI 2025, arXiv 2508.10925, section 2.1), and DeepSeek-V4
each matrix of an expert (deepseek_v4_hub.py).

Dimensions: X experts, O outputs, I inputs = 32 N, N blocks, Y bytes of a block: 16, with two numbers in each.
"""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

BLOCK = 32
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What four bits say: a sign, two of exponent, one of mantissa."""

FP4 = np.dtype(ml_dtypes.float4_e2m1fn)
"""The same as a type of which NumPy gives each number a byte."""


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


def unpack(raw: NDArray[np.uint8]) -> NDArray[Any]:
    """Bytes [...] as the FP4 numbers in them [2 ...], that in the lower half of a byte first."""
    byte = np.arange(256, dtype=np.uint8)
    return np.stack([byte & 15, byte >> 4], axis=-1)[raw].reshape(-1).view(FP4)


def dequantize_rows(
    numbers_OI: NDArray[Any], scales_ON: NDArray[Any], dtype: DTypeLike = np.float32, *, name: str = "weight"
) -> NDArray[Any]:
    """The matrix that FP4 numbers and float8_e8m0fnu scales stand for, [O, I] in `dtype`; bfloat16 holds it exactly.

    Memory: the result, and it in float32. Raises a ValueError that calls the scales `name`_scale_inv."""
    rows, columns = numbers_OI.shape
    if columns % BLOCK or scales_ON.shape != (rows, columns // BLOCK):
        raise ValueError(
            f"{name}_scale_inv: expected a scale for each {BLOCK} numbers of a row of {name} {[rows, columns]}, "
            f"got {list(scales_ON.shape)}"
        )
    numbers_ONi = numbers_OI.reshape(*scales_ON.shape, BLOCK).astype(np.float32)
    return (numbers_ONi * scales_ON.astype(np.float32)[..., None]).reshape(rows, columns).astype(dtype)
