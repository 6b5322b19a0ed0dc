"""Attention over a float8 cache, as the CPU computes it, at lengths where errors of a sum in few bits would show."""

import pytest
import torch
from torch import Tensor

from kvasir_kernels.dispatch import paged_attention, write_kv
from kvasir_kernels.paged_cache import AttentionBatch, CacheScales, LayerCache

pytestmark = pytest.mark.usefixtures("kernels")

FLOAT8 = torch.float8_e4m3fn
PAGE_SIZE, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 16, 8, 2, 64
SCALE = 0.1


class LongSequence:
    """Keys and values of one sequence in a float8 cache, in pages of random order; what they were before, too."""

    def __init__(self, num_tokens: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(num_tokens)
        num_pages = -(-num_tokens // PAGE_SIZE)
        self.table = torch.randperm(num_pages, generator=generator)
        positions = torch.arange(num_tokens)
        self.slots = self.table[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
        self.key, self.value = torch.randn(2, num_tokens, NUM_KV_HEADS, HEAD_DIM, generator=generator).to(dtype)
        self.value += 1  # nothing cancels: a sum that loses its last digits is too small
        self.query = torch.randn(4, NUM_HEADS, HEAD_DIM, generator=generator).to(dtype)
        pages = torch.full((2, num_pages, PAGE_SIZE, NUM_KV_HEADS, HEAD_DIM), torch.nan, dtype=FLOAT8)
        scales = CacheScales(torch.tensor([0.02, 0.05]), torch.tensor([0.01, 1.0]))
        self.cache = LayerCache(pages[0], pages[1], scales)
        write_kv(self.key, self.value, self.slots, self.cache)

    def attended(self, num_new: int) -> Tensor:
        batch = AttentionBatch((num_new,), (len(self.key),), self.table.unsqueeze(0), int(num_new == 1))
        return paged_attention(self.query[-num_new:], self.cache, batch, SCALE, None)

    def stored(self) -> tuple[Tensor, Tensor]:
        """What the cache holds, in float64."""
        assert self.cache.scales is not None
        key, value = (
            pages.view(torch.uint8).view(-1, NUM_KV_HEADS, HEAD_DIM)[self.slots].view(FLOAT8).double()
            * scale.double().unsqueeze(-1)
            for pages, scale in (
                (self.cache.key, self.cache.scales.key),
                (self.cache.value, self.cache.scales.value),
            )
        )
        return key, value

    def exact(self, key: Tensor, value: Tensor, num_new: int) -> Tensor:
        """Attention over these keys and values in float64."""
        query = self.query[-num_new:].double().view(num_new, NUM_KV_HEADS, -1, HEAD_DIM)
        scores = torch.einsum("tkgd,lkd->kgtl", query, key.double()) * SCALE
        last = torch.arange(len(key) - num_new, len(key)).unsqueeze(-1)
        weights = scores.masked_fill(torch.arange(len(key)) > last, -torch.inf).softmax(-1)
        attended: Tensor = torch.einsum("kgtl,lkd->tkgd", weights, value.double())
        return attended.reshape(num_new, NUM_HEADS, HEAD_DIM)


@pytest.mark.parametrize("num_new", [1, 4])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_sums_over_8192_keys_are_those_of_float64(num_new: int, dtype: torch.dtype, error: float) -> None:
    sequence = LongSequence(8192, dtype)
    exact = sequence.exact(*sequence.stored(), num_new)
    torch.testing.assert_close(sequence.attended(num_new).double(), exact, atol=error, rtol=error)


def test_what_float8_costs_does_not_grow_with_the_context() -> None:
    errors = []
    for num_tokens in (512, 8192):
        sequence = LongSequence(num_tokens, torch.float32)
        wide = sequence.exact(sequence.key, sequence.value, 1)
        errors.append(float((sequence.attended(1).double() - wide).norm() / wide.norm()))
    assert errors[1] < errors[0] < 0.02
