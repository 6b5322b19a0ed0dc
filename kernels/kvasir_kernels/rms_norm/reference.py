"""RMSNorm in plain torch (Zhang and Sennrich, 2019), rounded where transformers' LlamaRMSNorm rounds."""

import torch
from torch import Tensor

from kvasir_kernels.float8.reference import Grain, Quantized, quantize


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return `x` scaled to unit root mean square over its last axis, times `weight`.

    x: [..., E], weight: [E]. Computed in float32; the result has the dtype of `x`.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return `rms_norm(x + residual)` and the sum, which is the next residual.

    x, residual: [T, E], weight: [E]. The sum is rounded to the dtype of `x` before it is normalised.
    """
    total = x + residual
    return rms_norm(total, weight, eps), total


def add_rms_norm_float8(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, to: Grain | Tensor
) -> tuple[Quantized, Tensor]:
    """Return what add_rms_norm returns, the first in float8: what the next product takes."""
    normed, total = add_rms_norm(x, residual, weight, eps)
    return quantize(normed, to), total
