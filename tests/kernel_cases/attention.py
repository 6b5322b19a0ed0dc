"""Paged attention."""

from functools import partial

import torch
from torch import Tensor

from kvasir_kernels.paged_attention.reference import paged_attention as reference_attention
from kvasir_kernels.paged_cache import AttentionBatch, CacheScales, LayerCache, ScoreChanges
from kvasir_kernels.write_kv import reference as reference_write
from tests.kernel_cases.checking import DTYPES, Case, assert_close, name_of, nan_cache, new_memory_is_nan, random
from tests.kernel_cases.pages import FLOAT8, NARROW

# One sequence of a step: new tokens, and tokens visible at its end.
Lengths = tuple[int, int]

# Of results of the size of the values, which are ~1.
ATTENTION_ERROR = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def _tables(lengths: list[Lengths], page_size: int) -> tuple[Tensor, int]:
    """Random pages of every sequence, with two more columns than needed; and their number, with three free ones."""
    needed = [-(-context // page_size) for _, context in lengths]
    num_pages = sum(needed) + 3
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(7))
    tables = torch.zeros(len(lengths), max(needed) + 2, dtype=torch.int64)
    for index, pages in enumerate(order.split([*needed, 3])[:-1]):
        tables[index, : len(pages)] = pages
    return tables, num_pages


def fill(cache: LayerCache, tables: Tensor, lengths: list[Lengths], dtype: torch.dtype) -> None:
    """Write random keys and values of every context into its pages."""
    _, page_size, num_kv_heads, head_dim = cache.key.shape
    for pages, (_, context) in zip(tables, lengths, strict=True):
        positions = torch.arange(context)
        slots = (pages[positions // page_size] * page_size + positions % page_size).to(cache.key.device)
        key, value = random(cache.key.device, dtype, context, 2 * num_kv_heads, head_dim).chunk(2, dim=1)
        reference_write.write_kv(key, value, slots, cache)


def _wide(cache: LayerCache) -> LayerCache:
    """What the cache stands for, in float32."""
    if cache.scales is None:
        return LayerCache(cache.key.float(), cache.value.float())
    return LayerCache(
        cache.key.float() * cache.scales.key.unsqueeze(-1), cache.value.float() * cache.scales.value.unsqueeze(-1)
    )


def _check_attention(
    lengths: list[Lengths],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    heads: tuple[int, int, int] = (4, 2, 64),
    page_size: int = 16,
    window: int | None = None,
    narrow: str | None = None,
    soft_cap: float | None = None,
    has_sinks: bool = False,
) -> None:
    """Equal to the reference in float32 on the same pages; what lies outside of the contexts is NaN."""
    from kvasir_kernels.paged_attention.kernel import paged_attention

    num_heads, num_kv_heads, head_dim = heads
    lengths = sorted(lengths, key=lambda pair: pair[0] != 1)
    tables, num_pages = _tables(lengths, page_size)
    stored, scaled_by = NARROW[narrow] if narrow else (dtype, "nothing")
    cache = nan_cache((num_pages, page_size, num_kv_heads, head_dim), stored, device, scaled_by)
    fill(cache, tables, lengths, dtype)
    query = random(device, dtype, sum(new for new, _ in lengths), num_heads + 3, head_dim)[:, :num_heads]
    query_lens, context_lens = (tuple(column) for column in zip(*lengths, strict=True))
    batch = AttentionBatch(query_lens, context_lens, tables.to(device), query_lens.count(1))
    sinks = random(device, torch.float32, num_heads) if has_sinks else None
    changes = ScoreChanges(soft_cap, sinks) if soft_cap or has_sinks else None
    with new_memory_is_nan():
        outputs = [paged_attention(query, cache, batch, 0.2, window, changes) for _ in range(2)]
    expected = reference_attention(query.float(), _wide(cache), batch, 0.2, window, changes).to(dtype)
    assert_close(outputs[0], expected, ATTENTION_ERROR[dtype])
    assert torch.equal(*outputs), "the second layer of a step takes the first one's cut and must get the same"
    assert len(batch.work) == 1


def _check_last_of_many_pages(device: torch.device) -> None:
    """Their numbers are more than 32 bits count."""
    from kvasir_kernels.paged_attention.kernel import paged_attention

    shape = (8200, 64, 32, 128)
    scales = CacheScales(*torch.full((2, 32), 3 / 448, device=device))
    cache = LayerCache(*(torch.empty(shape, dtype=FLOAT8, device=device) for _ in "kv"), scales)
    assert cache.key.numel() > 2**31
    lengths, tables = [(1, 70), (20, 90)], torch.tensor([[8199, 8198], [8197, 8196]])
    fill(cache, tables, lengths, torch.float16)
    query = random(device, torch.float16, 21, 32, 128)
    batch = AttentionBatch((1, 20), (70, 90), tables.to(device), 1)
    attended = paged_attention(query, cache, batch, 0.1, None)
    assert_close(attended, reference_attention(query, cache, batch, 0.1, None), ATTENTION_ERROR[torch.float16])


MIXED = [(1, 1), (1, 9), (1, 64), (1, 65), (5, 5), (3, 11), (7, 70), (40, 130)]
SKEWED = [(1, 900), (1, 3), (1, 40), (1, 128)]
LAYOUTS = [(1, 1, 16), (14, 2, 64), (8, 8, 80), (4, 2, 96), (8, 2, 128), (71, 1, 64), (6, 2, 256)]


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    half = torch.float16
    for dtype in DTYPES:
        name = name_of(dtype)
        for window in (None, 50):
            found[f"attention {name} window {window}"] = partial(_check_attention, MIXED, dtype=dtype, window=window)
        found[f"attention {name} skewed"] = partial(_check_attention, SKEWED, dtype=dtype)
    for heads in LAYOUTS:
        found[f"attention heads {heads}"] = partial(
            _check_attention, [(1, 70), (1, 300), (9, 75)], heads=heads, dtype=half
        )
    for page_size in (1, 3, 128):
        found[f"attention pages of {page_size}"] = partial(_check_attention, MIXED, page_size=page_size, dtype=half)
    for window in (1, 3, 64, 1000):
        found[f"attention window {window}"] = partial(_check_attention, MIXED, window=window, dtype=half)
    for narrow in NARROW:
        found[f"attention {narrow}"] = partial(_check_attention, MIXED, narrow=narrow, dtype=half)
        found[f"attention {narrow} skewed"] = partial(_check_attention, SKEWED, narrow=narrow, window=600)
    found["attention float8 by tokens bfloat16"] = partial(
        _check_attention, MIXED, narrow="float8 by tokens", dtype=torch.bfloat16, heads=(6, 2, 80)
    )
    found["attention soft cap"] = partial(_check_attention, MIXED, soft_cap=1.5)
    found["attention sinks"] = partial(_check_attention, [*MIXED, (1, 700)], has_sinks=True)
    found["attention sinks, soft cap, window, int8"] = partial(
        _check_attention, SKEWED, has_sinks=True, soft_cap=2.0, window=500, narrow="int8 by tokens"
    )
    found["attention skewed window 600"] = partial(_check_attention, SKEWED, window=600)
    found["attention one token"] = partial(_check_attention, [(1, 1)])
    found["attention one chunk"] = partial(_check_attention, [(67, 67)])
    found["attention long prefix"] = partial(_check_attention, [(3, 400), (30, 333)])
    found["attention beyond 32 bits"] = _check_last_of_many_pages
    return found
