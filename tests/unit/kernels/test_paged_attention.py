"""Paged attention against dense attention in float64, in a cache whose every unused slot is NaN."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvasir_kernels.dispatch import ScoreChanges, paged_attention, write_kv
from kvasir_kernels.paged_cache import AttentionBatch, CacheScales, LayerCache, PaddedDecodes

pytestmark = pytest.mark.usefixtures("kernels")

# One sequence of a step: new tokens, and tokens visible at its end.
Lengths = tuple[int, int]


def _dense(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """Attend one sequence in float64, one query at a time; query: [T, H, D], key and value: [L, K, D]."""
    group_size = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(group_size, dim=1) for x in (key, value))
    rows = []
    for index, row in enumerate(query.double()):
        position = len(key) - len(query) + index
        first = 0 if window is None else max(0, position - window + 1)
        weights = (torch.einsum("hd,lhd->hl", row, key[first : position + 1]) * scale).softmax(-1)
        rows.append(torch.einsum("hl,lhd->hd", weights, value[first : position + 1]))
    return torch.stack(rows)


def _scatter(contexts: list[tuple[Tensor, Tensor]], page_size: int, seed: int) -> tuple[LayerCache, Tensor]:
    """Lay each sequence's keys and values out in pages of random order; all other slots are NaN."""
    needed = [-(-len(key) // page_size) for key, _ in contexts]
    num_pages = sum(needed) + 3
    shape = (num_pages, page_size, *contexts[0][0].shape[1:])
    dtype = contexts[0][0].dtype
    cache = LayerCache(torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype))
    free = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed))
    page_tables = torch.zeros(len(contexts), max(needed) + 2, dtype=torch.int64)
    for index, (key, value) in enumerate(contexts):
        pages, free = free[: needed[index]], free[needed[index] :]
        page_tables[index, : len(pages)] = pages
        for position in range(len(key)):
            cache.key[pages[position // page_size], position % page_size] = key[position]
            cache.value[pages[position // page_size], position % page_size] = value[position]
    return cache, page_tables


def _check(
    lengths: list[Lengths],
    *,
    heads: tuple[int, int, int] = (4, 2, 8),
    page_size: int = 4,
    window: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    num_heads, num_kv_heads, head_dim = heads
    torch.manual_seed(seed)
    lengths = sorted(lengths, key=lambda pair: pair[0] != 1)
    contexts = [tuple(torch.randn(2, context, num_kv_heads, head_dim).to(dtype).unbind()) for _, context in lengths]
    queries = [torch.randn(new, num_heads, head_dim).to(dtype) for new, _ in lengths]
    cache, page_tables = _scatter(contexts, page_size, seed)  # type: ignore[arg-type]
    batch = AttentionBatch(
        query_lens=tuple(new for new, _ in lengths),
        context_lens=tuple(context for _, context in lengths),
        page_tables=page_tables,
        num_decodes=sum(new == 1 for new, _ in lengths),
    )
    scale = head_dim**-0.5
    output = paged_attention(torch.cat(queries), cache, batch, scale, window)
    expected = [_dense(query, key, value, scale, window) for query, (key, value) in zip(queries, contexts, strict=True)]
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), torch.cat(expected), atol=tolerance, rtol=0)


@pytest.mark.parametrize("heads", [(1, 1, 2), (4, 4, 16), (4, 2, 32), (6, 1, 5), (14, 2, 64), (7, 1, 80)])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_decodes_and_chunks_together_equal_dense_attention(heads: tuple[int, int, int], window: int | None) -> None:
    _check([(1, 1), (1, 9), (1, 16), (5, 5), (3, 11), (7, 8)], heads=heads, window=window)


@pytest.mark.parametrize("lengths", [[(1, 1)], [(1, 37), (1, 2)], [(13, 13)], [(13, 60)], [(2, 3), (2, 2)]])
def test_steps_of_one_kind_equal_dense_attention(lengths: list[Lengths]) -> None:
    _check(lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("heads", [(6, 2, 48), (6, 2, 32), (4, 1, 128)])
def test_contexts_of_several_blocks_equal_dense_attention(
    heads: tuple[int, int, int], dtype: torch.dtype, window: int | None
) -> None:
    lengths = [(1, 64), (1, 65), (1, 300), (70, 70), (33, 129), (1, 63)]
    _check(lengths, heads=heads, page_size=16, window=window, dtype=dtype)


def test_a_context_of_several_spans_equals_dense_attention() -> None:
    _check([(1, 9000), (2, 8193), (1, 4097)], heads=(3, 1, 16), page_size=64)


def test_a_row_does_not_depend_on_the_rest_of_its_step() -> None:
    contexts = [tuple(torch.randn(2, length, 2, 16).unbind()) for length in (100, 5000)]
    cache, page_tables = _scatter(contexts, page_size=16, seed=1)  # type: ignore[arg-type]
    query = torch.randn(2, 4, 16)
    together = paged_attention(query, cache, AttentionBatch((1, 1), (100, 5000), page_tables, 2), 0.3, None)
    alone = paged_attention(query[1:], cache, AttentionBatch((1,), (5000,), page_tables[1:].clone(), 1), 0.3, None)
    torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=0)


def test_any_number_of_threads_gives_the_same() -> None:
    contexts = [tuple(torch.randn(2, length, 4, 64).unbind()) for length in (2000, 700)]
    cache, page_tables = _scatter(contexts, page_size=16, seed=1)  # type: ignore[arg-type]
    batch = AttentionBatch((1, 90), (2000, 700), page_tables, 1)
    query, num_threads = torch.randn(91, 8, 64), torch.get_num_threads()
    outputs = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        outputs.append(paged_attention(query, cache, batch, 0.1, None))
    torch.set_num_threads(num_threads)
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=0)


_lengths = st.tuples(st.integers(1, 9), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(max_examples=60)
@given(
    lengths=st.lists(_lengths, min_size=1, max_size=5),
    page_size=st.sampled_from([1, 3, 16]),
    window=st.none() | st.integers(1, 24),
    heads=st.sampled_from([(4, 2, 8), (4, 2, 16), (3, 3, 16), (5, 1, 32)]),
    seed=st.integers(0, 1000),
)
def test_any_step_equals_dense_attention(
    lengths: list[Lengths], page_size: int, window: int | None, heads: tuple[int, int, int], seed: int
) -> None:
    _check(lengths, heads=heads, page_size=page_size, window=window, seed=seed)


def test_one_token_sequence_counted_as_a_chunk_gives_the_same() -> None:
    key, value = torch.randn(2, 10, 2, 8).unbind()
    cache, page_tables = _scatter([(key, value)], page_size=4, seed=1)
    query = torch.randn(1, 4, 8)
    outputs = [
        paged_attention(query, cache, AttentionBatch((1,), (10,), page_tables, num_decodes), 0.3, 6)
        for num_decodes in (0, 1)
    ]
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("query_lens", "context_lens", "num_decodes"),
    [((2,), (2,), 1), ((1, 1), (1,), 2), ((3,), (2,), 0)],
)
def test_a_batch_that_contradicts_itself_is_caught(
    query_lens: tuple[int, ...], context_lens: tuple[int, ...], num_decodes: int
) -> None:
    with pytest.raises(AssertionError):
        AttentionBatch(query_lens, context_lens, torch.zeros(1, 1, dtype=torch.int64), num_decodes)


def _one_context(num_new: int, num_heads: int) -> tuple[Tensor, Tensor, Tensor, LayerCache, AttentionBatch]:
    """Query, keys and values of a context of 21 tokens, and where they lie."""
    key, value = torch.randn(2, 21, 2, 16).unbind()
    cache, page_tables = _scatter([(key, value)], 4, 0)
    batch = AttentionBatch((num_new,), (21,), page_tables, int(num_new == 1))
    return torch.randn(num_new, num_heads, 16), key, value, cache, batch


@pytest.mark.parametrize("num_new", [1, 9])
def test_a_sink_takes_its_share_of_the_weight_and_adds_nothing(num_new: int) -> None:
    query, key, value, cache, batch = _one_context(num_new, 4)
    sinks = torch.tensor([0.0, 3.0, -40.0, 200.0])
    attended = paged_attention(query, cache, batch, 0.3, None, ScoreChanges(sinks=sinks)).double()
    wide = key.double().repeat_interleave(2, dim=1)
    for row in range(num_new):
        seen = wide[: 21 - num_new + row + 1]
        total = (torch.einsum("hd,lhd->hl", query[row].double(), seen) * 0.3).exp().sum(-1)
        share = total / (total + sinks.double().exp())
        plain = _dense(query[row : row + 1], key[: len(seen)], value[: len(seen)], 0.3, None)[0]
        torch.testing.assert_close(attended[row], plain * share.unsqueeze(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_new", [1, 9])
def test_scores_stay_below_the_soft_cap(num_new: int) -> None:
    query, key, value, cache, batch = _one_context(num_new, 2)
    capped = paged_attention(100 * query, cache, batch, 1.0, None, ScoreChanges(soft_cap=1e-3))
    # All scores are nearly equal then: the mean of what is seen.
    means = torch.stack([value[: 21 - num_new + row + 1].mean(0) for row in range(num_new)])
    torch.testing.assert_close(capped, means, atol=5e-3, rtol=0)
    loose = paged_attention(query, cache, batch, 0.3, None, ScoreChanges(soft_cap=1e4))
    torch.testing.assert_close(loose.double(), _dense(query, key, value, 0.3, None), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("num_new", [1, 9])
def test_a_cache_of_8_bits_gives_about_the_same(dtype: torch.dtype, num_new: int) -> None:
    query, key, value, wide, batch = _one_context(num_new, 4)
    shape = wide.key.shape
    cache = LayerCache(*torch.zeros(2, *shape).to(dtype), CacheScales(*torch.zeros(2, *shape[:3])))
    positions = torch.arange(21)
    write_kv(key, value, batch.page_tables[0, positions // 4] * 4 + positions % 4, cache)
    attended = paged_attention(query, cache, batch, 0.25, None).double()
    expected = _dense(query, key, value, 0.25, None)
    torch.testing.assert_close(attended, expected, atol=0.1 if dtype != torch.int8 else 0.02, rtol=0)


@pytest.mark.parametrize("window", [None, 4])
def test_real_rows_of_padded_decodes_are_as_without_padding(window: int | None) -> None:
    contexts = [tuple(torch.randn(2, length, 2, 16).unbind()) for length in (9, 1, 5)]
    cache, tables = _scatter(contexts, 4, 0)  # type: ignore[arg-type]
    query = torch.randn(5, 4, 16)
    alone = paged_attention(query[:3], cache, AttentionBatch((1, 1, 1), (9, 1, 5), tables, 3), 0.3, window)
    padded_tables = torch.cat([tables, torch.full((2, tables.shape[1]), 10**6)])
    padded = PaddedDecodes(torch.tensor([9, 1, 5, 0, 0], dtype=torch.int32), padded_tables)
    torch.testing.assert_close(paged_attention(query, cache, padded, 0.3, window)[:3], alone, atol=1e-6, rtol=1e-6)
