"""The normalisation layer of every family so far."""

import torch
from torch import Tensor, nn

from kvasir_kernels.dispatch import Quantized, add_rms_norm, add_rms_norm_float8, rms_norm
from kvasir_workers.model.linear import InputForm


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised `x` [..., E]."""
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised sum of `x` and `residual`, and the sum itself: each [T, E]."""
        return add_rms_norm(x, residual, self.weight, self.eps)

    def add_for(self, form: InputForm, x: Tensor, residual: Tensor) -> tuple[Tensor | Quantized, Tensor]:
        """The same, the normalised sum in the form that the next matrix takes."""
        if form is None:
            return self.add(x, residual)
        return add_rms_norm_float8(x, residual, self.weight, self.eps, form)
