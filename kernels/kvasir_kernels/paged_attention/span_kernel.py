"""Softmax over a span of keys as they come by: what the kernels of decodes and of chunks have in common."""

import triton
import triton.language as tl

from kvasir_kernels.float8.kernel import widened

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def add_span(
    queries: tl.tensor,
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    table: tl.tensor,
    kv_head: tl.tensor,
    first: tl.tensor,
    masked: tl.tensor,
    end: tl.tensor,
    positions: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    WINDOWED: tl.constexpr,
    SCALED: tl.constexpr,
    STORED: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the maximum of each row's scores in base 2, the sum of its weights, and the weighted sum of the values.

    The keys are those from `first` to `end`; up to `masked`, whole tiles away, all rows see all of them (or it is the
    window that hides some).
    """
    keys, values = key_pages + kv_head * HEAD_DIM, value_pages + kv_head * HEAD_DIM
    if SCALED == "heads":
        scale *= tl.load(key_scales + kv_head)
    if SCALED == "tokens":
        key_scales += kv_head
        value_scales += kv_head
    factor = scale / soft_cap if CAPPED else scale * LOG2_E
    if WIDE:
        queries = queries.to(tl.float32)
    top = tl.full((ROWS,), -1e30, tl.float32)  # finite, so that a row which sees no key of a tile stays as it is
    total = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    for start in tl.range(first, masked, KEYS):
        top, total, result = _add_keys(
            queries, keys, values, key_scales, value_scales, table, start, end, positions, window, factor, soft_cap,
            top, total, result, WINDOWED,
            WINDOWED, SCALED, STORED, CAPPED, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, PAGE_SIZE, KEYS,
        )  # fmt: skip
    for start in tl.range(masked, end, KEYS):
        top, total, result = _add_keys(
            queries, keys, values, key_scales, value_scales, table, start, end, positions, window, factor, soft_cap,
            top, total, result, True,
            WINDOWED, SCALED, STORED, CAPPED, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, PAGE_SIZE, KEYS,
        )  # fmt: skip
    if SCALED == "heads":
        result *= tl.load(value_scales + kv_head)
    return top, total, result


@triton.jit
def _add_keys(
    queries: tl.tensor,
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    table: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    positions: tl.tensor,
    window: tl.tensor,
    factor: tl.tensor,
    soft_cap: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    result: tl.tensor,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    SCALED: tl.constexpr,
    STORED: tl.constexpr,
    CAPPED: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the running maximum, sum and result of the rows after KEYS more keys, which start at `start`.

    MASKED: some rows don't see some of the keys, or there are fewer; none from `end` on is read.
    """
    places = start + tl.arange(0, KEYS)
    slots, keys, values = _load_keys(
        key_pages, value_pages, table, places, end, queries.dtype,
        MASKED, STORED, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, PAGE_SIZE,
    )  # fmt: skip
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * factor
    if SCALED == "tokens":
        scores *= tl.load(key_scales + slots * NUM_KV_HEADS, mask=places < end, other=0.0)[None, :]
    if CAPPED:
        scores = (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2_E)) + 1.0)) * (soft_cap * LOG2_E)
    if MASKED:
        is_seen = places[None, :] <= positions[:, None]
        if WINDOWED:
            is_seen = is_seen & (places[None, :] > positions[:, None] - window)
        scores = tl.where(is_seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    fade = tl.exp2(top - new_top)
    weights = tl.exp2(scores - new_top[:, None])
    total = total * fade + tl.sum(weights, 1)
    if SCALED == "tokens":
        weights *= tl.load(value_scales + slots * NUM_KV_HEADS, mask=places < end, other=0.0)[None, :]
    result = tl.dot(weights.to(values.dtype), values, result * fade[:, None], input_precision="ieee")
    return new_top, total, result


@triton.jit
def _load_keys(
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    table: tl.tensor,
    places: tl.tensor,
    end: tl.tensor,
    dtype: tl.constexpr,
    MASKED: tl.constexpr,
    STORED: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the slots of some keys of a sequence, the keys and the values."""
    dims = tl.arange(0, BLOCK_DIM)
    if MASKED:
        pages = tl.load(table + places // PAGE_SIZE, mask=places < end, other=0)
    else:
        pages = tl.load(table + places // PAGE_SIZE)
    slots = pages * PAGE_SIZE + places % PAGE_SIZE
    pointers = (slots * (NUM_KV_HEADS * HEAD_DIM))[:, None] + dims[None, :]
    if MASKED or HEAD_DIM != BLOCK_DIM:
        is_number = (places < end)[:, None] & (dims < HEAD_DIM)[None, :]
        keys = tl.load(key_pages + pointers, mask=is_number, other=0.0)
        values = tl.load(value_pages + pointers, mask=is_number, other=0.0)
    else:
        keys = tl.load(key_pages + pointers)
        values = tl.load(value_pages + pointers)
    return slots, widened(keys, dtype, STORED), widened(values, dtype, STORED)
