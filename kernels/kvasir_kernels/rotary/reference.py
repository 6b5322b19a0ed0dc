"""Rotary embedding in plain torch (RoFormer, Su et al., 2021), Llama's convention: pairs are half a head apart."""

import torch
from torch import Tensor


def apply_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return query and key turned by each token's angles.

    query: [T, H, D], key: [T, K, D]; cos, sin: [T, D / 2], one angle for both numbers of a pair.
    Computed in the wider dtype of the two (the tables are float32); results keep their own dtype.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate(query, cos, sin), _rotate(key, cos, sin)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)
