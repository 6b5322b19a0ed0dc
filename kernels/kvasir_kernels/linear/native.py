"""The product with a matrix that was packed for the C++ kernel: it is read once and in order, at full bandwidth."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvasir_kernels.native.library import Kernel, KernelLibrary
from kvasir_kernels.native.memory import large_tensor

_linear = Kernel("linear", "pippiiipi")
_pack = Kernel("pack", "piip")
_unpack_rows = Kernel("unpack_rows", "pipip")

_BLOCK = 32


@dataclass(frozen=True, slots=True)
class NativeWeight:
    """A matrix [O, E] in the kernel's order, which kernel.cpp shows; its last block of outputs is padded."""

    library: KernelLibrary
    packed: Tensor
    num_outputs: int
    num_inputs: int


def can_pack(weight: Tensor) -> bool:
    """bfloat16 takes inputs in pairs."""
    return weight.dtype == torch.float32 or weight.shape[1] % 2 == 0


def pack(library: KernelLibrary, weight: Tensor) -> NativeWeight:
    num_outputs, num_inputs = weight.shape
    packed = large_tensor((-(-num_outputs // _BLOCK) * _BLOCK, num_inputs), weight.dtype)
    _pack(library, weight.dtype, weight.data_ptr(), num_outputs, num_inputs, packed.data_ptr())
    return NativeWeight(library, packed, num_outputs, num_inputs)


def linear(x: Tensor, weight: NativeWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See reference.py; float32 results of other dtypes are not rounded in between."""
    num_rows = x.size(0)
    out = x.new_empty(num_rows, weight.num_outputs, dtype=dtype)
    _linear(
        weight.library, x.dtype, x.data_ptr(), x.stride(0), weight.packed.data_ptr(),
        None if bias is None else bias.data_ptr(), num_rows, weight.num_inputs, weight.num_outputs,
        out.data_ptr(), dtype == torch.float32,
    )  # fmt: skip
    return out


def rows(weight: NativeWeight, row_ids: Tensor) -> Tensor:
    """Return the rows [T] of the matrix as they were before they were packed: [T, E]."""
    out = weight.packed.new_empty(len(row_ids), weight.num_inputs)
    _unpack_rows(
        weight.library, out.dtype, weight.packed.data_ptr(), weight.num_inputs,
        row_ids.data_ptr(), len(row_ids), out.data_ptr(),
    )  # fmt: skip
    return out
