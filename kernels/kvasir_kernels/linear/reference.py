"""The product with a weight matrix as it lies in the checkpoint, in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return x [T, E] times the transpose of weight [O, E], plus bias [O], in `dtype`: [T, O]."""
    return F.linear(x, weight, bias).to(dtype)
