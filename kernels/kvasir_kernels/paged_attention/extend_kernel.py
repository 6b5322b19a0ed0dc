"""A chunk's attention, cut along the rows: the keys that all rows of a tile see, then those on the diagonal."""

import triton
import triton.language as tl

from kvasir_kernels.paged_attention.span_kernel import LOG2_E, add_span


@triton.jit(do_not_specialize=["table_stride", "window"])
def extend(
    query: tl.tensor,
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    page_tables: tl.tensor,
    tiles: tl.tensor,
    sinks: tl.tensor,
    output: tl.tensor,
    scale: tl.float32,
    soft_cap: tl.float32,
    window: tl.int32,
    query_stride: tl.int64,
    table_stride: tl.int64,
    WINDOWED: tl.constexpr,
    SCALED: tl.constexpr,
    STORED: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Attend with ROWS rows of one sequence's new tokens: row r is query head r % GROUP of token r // GROUP."""
    tile = tiles + tl.program_id(0) * 5
    sequence, first_row, query_row = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    num_new, context = tl.load(tile + 3), tl.load(tile + 4)
    kv_head = tl.program_id(1)
    rows = first_row + tl.arange(0, ROWS)
    is_row = rows < num_new * GROUP
    tokens, heads = rows // GROUP, kv_head * GROUP + rows % GROUP
    dims = tl.arange(0, BLOCK_DIM)
    is_number = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    query_rows = (query_row + tokens).to(tl.int64)
    sources = query + (query_rows * query_stride + heads * HEAD_DIM)[:, None] + dims[None, :]
    queries = tl.load(sources, mask=is_number, other=0.0)
    table = page_tables + sequence.to(tl.int64) * table_stride
    start_position = context - num_new
    nearest = start_position + first_row // GROUP
    end = start_position + (tl.minimum(first_row + ROWS, num_new * GROUP) - 1) // GROUP + 1
    first = tl.maximum(nearest - window + 1, 0) if WINDOWED else 0
    diagonal = first + (nearest + 1 - first) // KEYS * KEYS
    top, total, result = add_span(
        queries, key_pages, value_pages, key_scales, value_scales, table, kv_head, first, diagonal, end,
        start_position + tokens, window, scale, soft_cap,
        WINDOWED, SCALED, STORED, CAPPED, WIDE, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, PAGE_SIZE, ROWS, KEYS,
    )  # fmt: skip
    if sinks is not None:
        total += tl.exp2(tl.load(sinks + heads, mask=is_row, other=0.0) * LOG2_E - top)
    result /= total[:, None]
    targets = output + (query_rows * (NUM_KV_HEADS * GROUP) + heads)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(targets, result.to(output.dtype.element_ty), mask=is_number)
