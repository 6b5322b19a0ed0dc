"""The likeliest token of each row by the C++ kernel; contiguous float32 on the CPU."""

import torch
from torch import Tensor

from kvasir_kernels.native.library import Kernel, KernelLibrary

_largest_logit = Kernel("largest_logit", "piipp")


def largest_logit(library: KernelLibrary, logits: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.py."""
    num_rows, width = logits.shape
    token_ids, values = logits.new_empty(num_rows, dtype=torch.int64), logits.new_empty(num_rows)
    _largest_logit(
        library, logits.dtype, logits.data_ptr(), num_rows, width, token_ids.data_ptr(), values.data_ptr()
    )  # fmt: skip
    return token_ids, values
