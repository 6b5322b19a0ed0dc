"""SwiGLU's gate by the C++ kernel; contiguous float32 or bfloat16 on the CPU."""

from torch import Tensor

from kvasir_kernels.native.library import Kernel, KernelLibrary

_silu_mul = Kernel("silu_mul", "piip")


def silu_mul(library: KernelLibrary, gate_up: Tensor) -> Tensor:
    """See reference.py."""
    num_rows, width = gate_up.shape
    out = gate_up.new_empty(num_rows, width // 2)
    _silu_mul(library, gate_up.dtype, gate_up.data_ptr(), num_rows, width // 2, out.data_ptr())
    return out
