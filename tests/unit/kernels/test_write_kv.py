"""Where keys and values land, and what stays untouched."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvasir_kernels.dispatch import write_kv
from kvasir_kernels.paged_cache import CacheScales, LayerCache


def _nan_cache(num_pages: int, page_size: int, num_kv_heads: int = 2, head_dim: int = 3) -> LayerCache:
    shape = (num_pages, page_size, num_kv_heads, head_dim)
    return LayerCache(torch.full(shape, torch.nan), torch.full(shape, torch.nan))


@given(data=st.data(), num_pages=st.integers(1, 5), page_size=st.integers(1, 5))
def test_every_token_lands_in_its_slot_and_nothing_else_changes(
    data: st.DataObject, num_pages: int, page_size: int
) -> None:
    every_slot = list(range(num_pages * page_size))
    slots = data.draw(st.permutations(every_slot + [-1] * 3))[: data.draw(st.integers(0, len(every_slot)))]
    cache = _nan_cache(num_pages, page_size)
    key, value = torch.randn(2, len(slots), 2, 3, generator=torch.Generator().manual_seed(0)).unbind()
    write_kv(key, value, torch.tensor(slots, dtype=torch.int64), cache)
    for new, pages in ((key, cache.key), (value, cache.value)):
        for slot in every_slot:
            stored = pages[slot // page_size, slot % page_size]
            if slot in slots:
                assert torch.equal(stored, new[slots.index(slot)])
            else:
                assert stored.isnan().all()


def test_strided_keys_and_values_are_taken() -> None:
    cache = _nan_cache(2, 4)
    heads = torch.randn(3, 5, 3)
    write_kv(heads[:, 1:3], heads[:, 3:5], torch.tensor([6, 0, 3]), cache)
    assert torch.equal(cache.key[1, 2], heads[0, 1:3])
    assert torch.equal(cache.value[0, 3], heads[2, 3:5])


@pytest.mark.parametrize(("dtype", "error"), [(torch.float8_e4m3fn, 2**-4), (torch.int8, 1 / 127)])
@pytest.mark.parametrize("per_token", [True, False])
def test_a_cache_of_8_bits_stands_for_what_was_written(dtype: torch.dtype, error: float, per_token: bool) -> None:
    shape = (3, 4, 2, 16)
    scales = torch.full((2, *shape[:3]), torch.nan) if per_token else torch.tensor([[4.0, 5.0], [6.0, 4.5]])
    scales = scales if per_token else scales / (448 if dtype == torch.float8_e4m3fn else 127)
    cache = LayerCache(*torch.zeros(2, *shape).to(dtype), CacheScales(*scales))
    key, value = torch.randn(2, 5, 2, 16).clamp(-4, 4).unbind()
    slots = torch.tensor([7, -1, 0, 11, 2])
    write_kv(key, value, slots, cache)
    for new, pages, scale in ((key, cache.key, scales[0]), (value, cache.value, scales[1])):
        read = (pages.float() * scale.unsqueeze(-1)).view(-1, 2, 16)[slots[slots >= 0]]
        torch.testing.assert_close(read, new[slots >= 0], rtol=error, atol=6 * error / 2)
    if per_token:
        assert scales[0].view(-1, 2)[[1, 3, 4]].isnan().all()
