"""The product by torch's own operator, which is cuBLAS's on NVIDIA's chips."""

import torch
from torch import Tensor

from kvasir_kernels.float8.reference import Quantized

_ALIGNMENT = 16
"""Of both sides of the weight."""

_FIRST_WITH_FLOAT8 = (8, 9)
_FIRST_WITH_ROWS = (9, 0)


def can_multiply(x: Quantized, weight: Quantized, dtype: torch.dtype) -> bool:
    """Whether the operator takes these as they are: it has no blocks like ours, and beside a scale for each output none
    for all inputs, as checkpoints with static activations have them. A copy of that for each token would do, in a
    launch of its own for every product; which of both ways is faster nobody has measured.
    """
    if torch.version.hip is not None or any(size % _ALIGNMENT for size in weight.values.shape):
        return False
    capability = torch.cuda.get_device_capability(x.values.device)
    if x.scale.dim() == weight.scale.dim() == 1:
        return capability >= _FIRST_WITH_FLOAT8
    has_rows = x.scale.shape[1:] == (1,) and weight.scale.shape == (len(weight.values), 1)
    return has_rows and capability >= _FIRST_WITH_ROWS and dtype == torch.bfloat16


def float8_linear(x: Quantized, weight: Quantized, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See reference.py."""
    scale = weight.scale if weight.scale.dim() == 1 else weight.scale.T
    # Sums are kept in float32 from time to time, as the kernel does it.
    return torch._scaled_mm(x.values, weight.values.T, x.scale, scale, bias=bias, out_dtype=dtype, use_fast_accum=False)
