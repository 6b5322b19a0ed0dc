"""The product with a matrix that oneDNN has packed: for CPUs with matrix units, and where nothing could be built."""

from dataclasses import dataclass

import torch
from torch import Tensor

_NUM_ROWS = 32
"""oneDNN chooses a layout for so many rows: the middle of what a step of decodes has."""


@dataclass(frozen=True, slots=True)
class OneDnnWeight:
    """An opaque tensor, which nothing but oneDNN's product can read."""

    packed: Tensor


def can_pack(weight: Tensor) -> bool:
    """bfloat16 halves the time of few rows; float32 gains too little for a layout that suits one number of rows."""
    return weight.dtype == torch.bfloat16 and torch._C._has_mkldnn


def pack(weight: Tensor) -> OneDnnWeight:
    return OneDnnWeight(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _NUM_ROWS))


def linear(x: Tensor, weight: OneDnnWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See reference.py."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.packed, bias, "none", [], "")
    return out.to(dtype)
