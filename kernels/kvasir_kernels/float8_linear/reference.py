"""The product of quantized numbers with quantized weights, in plain torch: they are widened first."""

import torch
from torch import Tensor

from kvasir_kernels.float8.reference import BLOCK, Quantized


def float8_linear(x: Quantized, weight: Quantized, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return x [T, E] times the transpose of weight [O, E], plus bias [O], in `dtype`: [T, O].

    Both have one scale each, or one for each row each; or x has blocks of 128 and the weight squares of 128 by 128.
    """
    product = x.widened() @ weight.widened().T
    return (product if bias is None else product + bias.float()).to(dtype)


def has_blocks(x: Quantized, weight: Quantized) -> bool:
    """Whether scales change along the inputs; those of x and of the weight must fit."""
    num_blocks = -(-x.values.shape[1] // BLOCK)
    if weight.scale.dim() == 1 or weight.scale.shape == (len(weight.values), 1):
        return False
    shapes = (len(x.values), num_blocks), (-(-len(weight.values) // BLOCK), num_blocks)
    assert (x.scale.shape, weight.scale.shape) == shapes, f"{x.scale.shape}, {weight.scale.shape} are not {shapes}"
    return True
