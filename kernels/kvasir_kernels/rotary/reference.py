"""Rotary embedding in plain torch (RoFormer, Su et al., 2021), Llama's convention: pairs are half a head apart."""

import torch
from torch import Tensor


def apply_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return query and key turned by each token's angles.

    query: [T, H, D], key: [T, K, D]; cos, sin: [T, D], whose second half repeats the first.
    Computed in the wider dtype of the two (the tables are float32); results keep their own dtype.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate(query, cos, sin), _rotate(key, cos, sin)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (heads * cos + turned * sin).to(heads.dtype)
