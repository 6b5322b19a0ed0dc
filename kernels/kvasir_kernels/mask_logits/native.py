"""Packed masks over logits by the C++ kernel; contiguous float32 on the CPU."""

import torch
from torch import Tensor

from kvasir_kernels.native.library import Kernel, KernelLibrary

_mask_logits = Kernel("mask_logits", "pppiii")


def mask_logits(library: KernelLibrary, logits: Tensor, rows: tuple[int, ...], bits: Tensor) -> None:
    """See reference.py."""
    index = torch.tensor(rows)
    sizes = (logits.shape[-1], *bits.shape)
    addresses = (logits.data_ptr(), index.data_ptr(), bits.data_ptr())
    _mask_logits(library, logits.dtype, *addresses, *sizes)
