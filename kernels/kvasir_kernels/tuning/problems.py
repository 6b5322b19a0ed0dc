"""What is computed to choose a tile: each tunable operation on random numbers, at the shapes of a model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kvasir_kernels.float8.reference import FLOAT8, Grain, quantize, quantize_weight
from kvasir_kernels.float8_linear import reference as plain_linear
from kvasir_kernels.float8_linear.kernel import float8_linear
from kvasir_kernels.float8_linear.tiles import TOKENS, candidates, key_of
from kvasir_kernels.paged_attention import reference as plain_attention
from kvasir_kernels.paged_attention.kernel import paged_attention
from kvasir_kernels.paged_attention.tiles import Tile, chunk_candidates, chunk_key, decode_candidates, decode_key
from kvasir_kernels.paged_cache import AttentionBatch, CacheScales, LayerCache
from kvasir_kernels.tuning.search import Problem
from kvasir_kernels.tuning.table import TileKey

# New tokens, and tokens visible at their end, of each sequence of a step.
Lengths = tuple[tuple[int, int], ...]

_ATTENTION_ERROR = {torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}
_PRODUCT_ERROR = 2e-2
"""Of bfloat16 results; sums of 128 products keep some 14 bits."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Of one rank. stored: the cache's dtype."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype
    stored: torch.dtype


@dataclass(frozen=True, slots=True)
class Loads:
    """What attention is measured on: steps of decodes, all of which count, and steps of chunks."""

    decodes: tuple[Lengths, ...]
    chunks: tuple[Lengths, ...]


SERVED = Loads(
    decodes=(((1, 8192),) * 8, ((1, 2048),) * 64, ((1, 32768), *((1, 1024),) * 31)),
    chunks=(((2048, 2048),) * 2, ((1024, 8192),)),
)
"""Few long contexts, many of middle length, one very long one among short ones; whole prompts and a late chunk."""


def attention_problems(shape: AttentionShape, loads: Loads, device: torch.device) -> Iterator[Problem]:
    """Of decodes, then of chunks: nothing of the former is held for the latter."""
    yield _attention(decode_key, decode_candidates, [_AttentionStep(shape, each, device) for each in loads.decodes])
    yield _attention(chunk_key, chunk_candidates, [_AttentionStep(shape, each, device) for each in loads.chunks])


def scattered(lengths: Sequence[tuple[int, int]], page_size: int, device: torch.device) -> tuple[AttentionBatch, int]:
    """A step of sequences whose pages lie in random order, and the number of pages; single tokens come first."""
    query_lens, context_lens = (tuple(column) for column in zip(*lengths, strict=True))
    counts = [-(-context // page_size) for context in context_lens]
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int64)
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0))
    for row, pages in enumerate(torch.split(order, counts)):
        tables[row, : len(pages)] = pages
    return AttentionBatch(query_lens, context_lens, tables.to(device), query_lens.count(1)), sum(counts)


class _AttentionStep:
    """Random queries, and random pages in random order."""

    def __init__(self, shape: AttentionShape, lengths: Lengths, device: torch.device) -> None:
        self.batch, num_pages = scattered(lengths, shape.page_size, device)
        num_tokens = sum(self.batch.query_lens)
        numbers = torch.randn(num_tokens, shape.num_heads, shape.head_dim, generator=torch.Generator().manual_seed(0))
        self.query = numbers.to(device, shape.dtype)
        self.cache = _cache(shape, num_pages, device)
        self.scale = shape.head_dim**-0.5

    def compute(self) -> Tensor:
        return paged_attention(self.query, self.cache, self.batch, self.scale, None)

    def expected(self) -> Tensor:
        return plain_attention.paged_attention(self.query, self.cache, self.batch, self.scale, None)


def _cache(shape: AttentionShape, num_pages: int, device: torch.device) -> LayerCache:
    """A stored dtype of 8 bits has a scale for each head, or (int8) one for each head of each token."""
    numbers = torch.randn(2, num_pages, shape.page_size, shape.num_kv_heads, shape.head_dim, device=device)
    scales = None
    if shape.stored == FLOAT8:
        heads = torch.ones(shape.num_kv_heads, device=device)
        scales = CacheScales(heads, heads)
    elif shape.stored == torch.int8:
        numbers = (numbers * 40).clamp(-127, 127)
        tokens = torch.full(numbers.shape[1:-1], 1 / 40, device=device)
        scales = CacheScales(tokens, tokens)
    key, value = numbers.to(shape.stored).unbind()
    return LayerCache(key, value, scales)


def _attention(
    key_of: Callable[[Tensor, LayerCache], TileKey],
    candidates_of: Callable[[Tensor, LayerCache], tuple[Tile, ...]],
    steps: list[_AttentionStep],
) -> Problem:
    query, cache = steps[0].query, steps[0].cache
    return Problem(
        key=key_of(query, cache),
        candidates=candidates_of(query, cache),
        compute=lambda: torch.cat([step.compute() for step in steps]),
        reference=lambda: torch.cat([step.expected() for step in steps]),
        tolerance=_ATTENTION_ERROR[query.dtype],
    )


def float8_problems(num_inputs: int, num_outputs: int, grain: Grain, device: torch.device) -> Iterator[Problem]:
    """The product with one weight for each number of tokens that has tiles of its own."""
    dice = torch.Generator().manual_seed(0)
    weight = quantize_weight(torch.randn(num_outputs, num_inputs, generator=dice).to(device), grain)
    for num_tokens in TOKENS:
        x = quantize(torch.randn(num_tokens, num_inputs, generator=dice).to(device) / num_inputs**0.5, grain)
        yield Problem(
            key=key_of(x, weight),
            candidates=candidates(num_tokens, blocks=grain is Grain.BLOCK),
            compute=partial(float8_linear, x, weight, None, torch.bfloat16),
            reference=partial(plain_linear.float8_linear, x, weight, None, torch.bfloat16),
            tolerance=_PRODUCT_ERROR,
        )
