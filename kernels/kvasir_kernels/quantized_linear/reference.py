"""Weights as small integers with scales, and their product in plain torch."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix [O, E]: code times the scale of its group, the next group_size inputs of one output.

    codes: [O, E] int8 of 8 bits, -127 to 127; or [O, E / 2] uint8, two of 4 bits less 8, the even input below.
    scales: [O, ceil(E / group_size)] bfloat16.
    """

    codes: Tensor
    scales: Tensor
    num_bits: int
    group_size: int

    @property
    def num_inputs(self) -> int:
        return self.codes.shape[1] * (8 // self.num_bits)


_ROWS_WEIGHTS = 2**20
"""Quantized at once: what lies in between takes some 12 MB. With four times as many it took twice as long."""


def quantize(weight: Tensor, num_bits: int, group_size: int) -> QuantizedMatrix:
    """Return the nearest codes to weight [O, E]. num_bits: 8, or 4 where E is even.

    Of 8 bits a group's largest weight is 127 or -127; of 4 it is -8, whatever its sign: the scale's may be negative.
    """
    blocks = torch.split(weight, max(1, _ROWS_WEIGHTS // weight.shape[1]))
    codes, scales = zip(*(_quantize_rows(block, num_bits, group_size) for block in blocks), strict=True)
    return QuantizedMatrix(torch.cat(codes), torch.cat(scales), num_bits, group_size)


def _quantize_rows(weight: Tensor, num_bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    num_outputs, num_inputs = weight.shape
    num_groups = -(-num_inputs // group_size)
    padded = F.pad(weight.float(), (0, num_groups * group_size - num_inputs))
    groups = padded.view(num_outputs, num_groups, group_size)
    largest = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))[..., 0]
    scales = (largest.abs() / 127 if num_bits == 8 else largest / -8).bfloat16()
    lowest, highest = (-127, 127) if num_bits == 8 else (-8, 7)
    divisor = torch.where(scales == 0, 1, scales).float()[..., None]
    codes = (groups / divisor).round().clamp(lowest, highest).view(num_outputs, -1)[:, :num_inputs].to(torch.int8)
    return codes if num_bits == 8 else _pairs(codes), scales


def _pairs(codes: Tensor) -> Tensor:
    unsigned = (codes + 8).to(torch.uint8)
    return unsigned[:, ::2] | unsigned[:, 1::2] << 4


def integers(matrix: QuantizedMatrix) -> Tensor:
    """Return the codes one by one: [O, E] int8."""
    if matrix.num_bits == 8:
        return matrix.codes
    pairs = torch.stack((matrix.codes & 15, matrix.codes >> 4), dim=-1)
    return pairs.flatten(1).to(torch.int8) - 8


def dequantize(matrix: QuantizedMatrix, row_ids: Tensor | None = None) -> Tensor:
    """Return the matrix's rows, or some of them: [O or T, E] float32."""
    if row_ids is not None:
        matrix = QuantizedMatrix(matrix.codes[row_ids], matrix.scales[row_ids], matrix.num_bits, matrix.group_size)
    scales = matrix.scales.float().repeat_interleave(matrix.group_size, dim=1)[:, : matrix.num_inputs]
    return integers(matrix) * scales


def quantized_linear(x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return x [T, E] times the transpose of the matrix, plus bias [O], in `dtype`: [T, O]; computed in float32."""
    return F.linear(x.float(), dequantize(matrix), None if bias is None else bias.float()).to(dtype)
