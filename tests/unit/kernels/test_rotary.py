"""Rotary embedding as the rotation of complex numbers that it is."""

import pytest
import torch
from torch import Tensor

from kvasir_kernels.rotary.reference import apply_rotary


def _rotated(heads: Tensor, angles: Tensor) -> Tensor:
    """Turn heads [T, H, D] by angles [T, D / 2], in float64 and as complex numbers."""
    real, imaginary = heads.double().chunk(2, dim=-1)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    return torch.cat((turned.real, turned.imag), dim=-1)


def _tables(angles: Tensor) -> tuple[Tensor, Tensor]:
    return angles.cos().float(), angles.sin().float()


@pytest.mark.parametrize(("num_tokens", "num_heads", "num_kv_heads", "head_dim"), [(1, 1, 1, 2), (7, 6, 3, 10)])
def test_is_a_rotation_of_pairs_half_a_head_apart(
    num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    query = torch.randn(num_tokens, num_heads, head_dim)
    key = torch.randn(num_tokens, num_kv_heads, head_dim)
    angles = 10 * torch.rand(num_tokens, head_dim // 2, dtype=torch.float64)
    turned_query, turned_key = apply_rotary(query, key, *_tables(angles))
    torch.testing.assert_close(turned_query.double(), _rotated(query, angles), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned_key.double(), _rotated(key, angles), atol=1e-5, rtol=1e-5)


def test_half_precision_is_rounded_once() -> None:
    query, key = torch.randn(2, 5, 4, 8).bfloat16().unbind()
    angles = torch.rand(5, 4, dtype=torch.float64)
    turned, _ = apply_rotary(query, key, *_tables(angles))
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.double(), _rotated(query, angles), atol=0, rtol=2**-8)
