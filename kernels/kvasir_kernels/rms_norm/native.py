"""RMSNorm by the C++ kernel; contiguous float32 or bfloat16 on the CPU."""

import torch
from torch import Tensor

from kvasir_kernels.native.library import Kernel, KernelLibrary

_rms_norm = Kernel("rms_norm", "pppfiipp")


def rms_norm(library: KernelLibrary, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See reference.py."""
    out = torch.empty_like(x)
    size = x.shape[-1]
    num_rows = x.numel() // size
    address, scaled = x.data_ptr(), out.data_ptr()
    _rms_norm(library, x.dtype, address, None, weight.data_ptr(), eps, num_rows, size, None, scaled)
    return out


def add_rms_norm(
    library: KernelLibrary, x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See reference.py."""
    out, total = torch.empty_like(x), torch.empty_like(x)
    num_rows, size = x.shape
    addresses = (x.data_ptr(), residual.data_ptr(), weight.data_ptr())
    _rms_norm(library, x.dtype, *addresses, eps, num_rows, size, total.data_ptr(), out.data_ptr())
    return out, total
