"""Quantization to float8 in plain torch."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional as F

FLOAT8 = torch.float8_e4m3fn

LARGEST = 448.0
"""Of the dtype; it has no infinity."""

BLOCK = 128

SMALLEST_PEAK = 1e-12
"""A row of zeros gets a scale all the same."""


class Grain(Enum):
    """Which numbers share a scale that is found as they are quantized."""

    ROW = "row"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix in 8 bits: values times scale is what it stands for.

    values: [T, E] float8_e4m3fn. scale: float32, [1] for all; [T, 1], one for each row; [T, ceil(E / 128)], one for
    each 128 numbers of a row; or, of weights, [ceil(T / 128), ceil(E / 128)], one for each square of 128 by 128.
    """

    values: Tensor
    scale: Tensor

    def widened(self) -> Tensor:
        """What it stands for: [T, E] float32."""
        wide, scale = self.values.float(), self.scale
        if scale.dim() == 1:
            return wide * scale
        if scale.shape[0] != wide.shape[0]:
            scale = scale.repeat_interleave(BLOCK, 0)[: wide.shape[0]]
        if scale.shape[1] != 1:
            scale = scale.repeat_interleave(BLOCK, 1)[:, : wide.shape[1]]
        return wide * scale


def quantize(x: Tensor, to: Grain | Tensor) -> Quantized:
    """Return `x` [T, E] in float8. to: which numbers share a scale; or the scale, [1], of all, where it is known.

    What the scale is too small for becomes the largest number; NaN stays NaN.
    """
    wide = x.float()
    if isinstance(to, Tensor):
        return Quantized(_rounded(wide / to), to)
    match to:
        case Grain.ROW:
            scale = _scale_of(wide)
            return Quantized(_rounded(wide / scale), scale)
        case Grain.BLOCK:
            num_blocks = -(-x.shape[1] // BLOCK)
            blocks = F.pad(wide, (0, num_blocks * BLOCK - x.shape[1])).view(len(x), num_blocks, BLOCK)
            scale = _scale_of(blocks)
            values = _rounded(blocks / scale).flatten(1)[:, : x.shape[1]]
            return Quantized(values.contiguous(), scale.squeeze(-1))


def quantize_weight(weight: Tensor, grain: Grain) -> Quantized:
    """Return a weight [O, E] in float8, with a scale for each row, or for each square of 128 by 128."""
    if grain is Grain.ROW:
        return quantize(weight, grain)
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    padding = (0, columns * BLOCK - weight.shape[1], 0, rows * BLOCK - weight.shape[0])
    squares = F.pad(weight.float(), padding).view(rows, BLOCK, columns, BLOCK)
    scale = squares.abs().amax(dim=(1, 3), keepdim=True).clamp(min=SMALLEST_PEAK) / LARGEST
    values = _rounded(squares / scale).view(rows * BLOCK, columns * BLOCK)
    return Quantized(values[: weight.shape[0], : weight.shape[1]].contiguous(), scale.view(rows, columns))


def _scale_of(x: Tensor) -> Tensor:
    return x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_PEAK) / LARGEST


def _rounded(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST, LARGEST).to(FLOAT8)
