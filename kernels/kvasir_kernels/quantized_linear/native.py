"""The product with weights of a few bits by the C++ kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvasir_kernels.native.library import Kernel, KernelLibrary
from kvasir_kernels.native.memory import large_tensor
from kvasir_kernels.quantized_linear.reference import QuantizedMatrix, integers

_linear = Kernel("quantized_linear", "pippiipiiipi")
_pack = Kernel("pack_quantized", "piiip")
_unpack_rows = Kernel("unpack_quantized_rows", "ppiiipip")

_BLOCK, _UNIT = 32, 4


@dataclass(frozen=True, slots=True)
class NativeQuantizedWeight:
    """A quantized matrix [O, E] in the kernel's order, which product.h shows, for activations of one dtype.

    packed: bytes. scales: [O / 32, groups, 32] bfloat16.
    """

    library: KernelLibrary
    dtype: torch.dtype
    packed: Tensor
    scales: Tensor
    num_bits: int
    group_size: int
    num_outputs: int
    num_inputs: int


def can_pack(matrix: QuantizedMatrix) -> bool:
    """The kernel takes four inputs at once, and those of 8 bits have one scale for each output."""
    has_groups = matrix.group_size < matrix.num_inputs
    return (
        matrix.num_inputs % _UNIT == 0 and matrix.group_size % _UNIT == 0 and not (matrix.num_bits == 8 and has_groups)
    )


def pack(library: KernelLibrary, matrix: QuantizedMatrix, dtype: torch.dtype) -> NativeQuantizedWeight:
    codes = integers(matrix).contiguous()
    num_outputs, num_inputs = codes.shape
    num_blocks = -(-num_outputs // _BLOCK)
    packed = large_tensor((num_blocks * _BLOCK * num_inputs * matrix.num_bits // 8,), torch.uint8).zero_()
    _pack(library, dtype, codes.data_ptr(), num_outputs, num_inputs, matrix.num_bits, packed.data_ptr())
    scales = torch.zeros(num_blocks * _BLOCK, matrix.scales.shape[1], dtype=torch.bfloat16)
    scales[:num_outputs] = matrix.scales
    return NativeQuantizedWeight(
        library=library,
        dtype=dtype,
        packed=packed,
        scales=scales.view(num_blocks, _BLOCK, -1).transpose(1, 2).contiguous(),
        num_bits=matrix.num_bits,
        group_size=matrix.group_size,
        num_outputs=num_outputs,
        num_inputs=num_inputs,
    )


def linear(x: Tensor, weight: NativeQuantizedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See reference.py."""
    assert x.dtype == weight.dtype, f"packed for {weight.dtype}, not {x.dtype}"
    out = x.new_empty(x.size(0), weight.num_outputs, dtype=dtype)
    _linear(
        weight.library, x.dtype, x.data_ptr(), x.stride(0), weight.packed.data_ptr(), weight.scales.data_ptr(),
        weight.num_bits, weight.group_size, None if bias is None else bias.data_ptr(),
        x.size(0), weight.num_inputs, weight.num_outputs, out.data_ptr(), dtype == torch.float32,
    )  # fmt: skip
    return out


def rows(weight: NativeQuantizedWeight, row_ids: Tensor) -> Tensor:
    """Return the rows [T] of the matrix in the dtype that it was packed for: [T, E]."""
    out = torch.empty(len(row_ids), weight.num_inputs, dtype=weight.dtype)
    _unpack_rows(
        weight.library, weight.dtype, weight.packed.data_ptr(), weight.scales.data_ptr(),
        weight.num_bits, weight.group_size, weight.num_inputs, row_ids.data_ptr(), len(row_ids), out.data_ptr(),
    )  # fmt: skip
    return out
