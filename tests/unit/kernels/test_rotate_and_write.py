"""The fused pass against its three parts, each of which has tests of its own."""

import pytest
import torch

from kvasir_kernels.dispatch import HeadNorms, rotate_and_write
from kvasir_kernels.paged_cache import LayerCache
from kvasir_kernels.rotate_and_write import reference

pytestmark = pytest.mark.usefixtures("kernels")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _cache(num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> LayerCache:
    shape = (5, 4, num_kv_heads, head_dim)
    return LayerCache(torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [(1, 1, 16), (4, 2, 16), (3, 3, 80), (6, 1, 128), (2, 2, 6)])
@pytest.mark.parametrize("has_norms", [False, True])
def test_equals_norms_then_rotation_then_write(
    dtype: torch.dtype, layout: tuple[int, int, int], has_norms: bool
) -> None:
    num_heads, num_kv_heads, head_dim = layout
    slots = torch.tensor([7, -1, 0, 19, 12, -1])
    heads = torch.randn(len(slots), num_heads + 2 * num_kv_heads, head_dim).to(dtype)
    angles = 10 * torch.rand(len(slots), head_dim // 2)
    norms = HeadNorms(*torch.randn(2, head_dim).to(dtype).unbind(), 1e-6) if has_norms else None
    ours, theirs = (_cache(num_kv_heads, head_dim, dtype) for _ in range(2))
    expected = reference.rotate_and_write(heads.clone(), norms, angles.cos(), angles.sin(), slots, theirs)
    query = rotate_and_write(heads, norms, angles.cos(), angles.sin(), slots, ours)
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(query, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.key, theirs.key, atol=tolerance, rtol=tolerance, equal_nan=True)
    assert torch.equal(ours.value.nan_to_num(-1), theirs.value.nan_to_num(-1))


def test_angles_may_be_a_part_of_longer_rows() -> None:
    heads, rows = torch.randn(3, 4, 32), torch.randn(3, 32)
    cos, sin = rows.chunk(2, dim=-1)
    slots = torch.arange(3)
    query = rotate_and_write(heads.clone(), None, cos, sin, slots, _cache(1, 32, torch.float32))
    expected = rotate_and_write(heads, None, cos.clone(), sin.clone(), slots, _cache(1, 32, torch.float32))
    torch.testing.assert_close(query, expected)


@pytest.mark.parametrize("interleaved", [True, False])
def test_only_the_first_numbers_of_a_head_turn(interleaved: bool) -> None:
    heads, angles = torch.randn(3, 4, 32), torch.randn(3, 5)
    cache = _cache(1, 32, torch.float32)
    before = heads.clone().double()
    query = rotate_and_write(
        heads, None, angles.cos(), angles.sin(), torch.arange(3), cache, interleaved=interleaved
    ).double()
    assert torch.equal(query[..., 10:], before[:, :2, 10:])
    first, second = (slice(0, 10, 2), slice(1, 10, 2)) if interleaved else (slice(0, 5), slice(5, 10))
    turned = torch.complex(before[:, :2, first], before[:, :2, second]) * torch.exp(1j * angles.double()).unsqueeze(1)
    torch.testing.assert_close(torch.complex(query[..., first], query[..., second]), turned, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache.value.view(-1, 32)[:3], before[:, 3].float())
