"""Rotary embedding in plain torch (RoFormer, Su et al., 2021)."""

import torch
from torch import Tensor


def apply_rotary(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Return query and key turned by each token's angles.

    query: [T, H, D], key: [T, K, D]; cos, sin: [T, R / 2], one angle for both numbers of a pair. The first R numbers of
    a head are turned, R <= D; the others stay. interleaved: pairs lie side by side (GPT-J), else R / 2 apart (Llama).
    Computed in the wider dtype of the two (the tables are float32); results keep their own dtype.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate(query, cos, sin, interleaved), _rotate(key, cos, sin, interleaved)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    size = 2 * cos.shape[-1]
    turning = heads[..., :size]
    first, second = (turning[..., ::2], turning[..., 1::2]) if interleaved else turning.chunk(2, dim=-1)
    pairs = first * cos - second * sin, second * cos + first * sin
    turned = torch.stack(pairs, dim=-1).flatten(-2) if interleaved else torch.cat(pairs, dim=-1)
    turned = turned.to(heads.dtype)
    return turned if size == heads.shape[-1] else torch.cat((turned, heads[..., size:]), dim=-1)
