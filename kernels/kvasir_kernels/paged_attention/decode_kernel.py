"""One token's attention, cut along the keys: a piece for each program, and the pieces of one sequence merged."""

import triton
import triton.language as tl

from kvasir_kernels.paged_attention.span_kernel import LOG2_E, add_span


# Nothing that changes from step to step is compiled in.
@triton.jit(do_not_specialize=["table_stride"])
def decode(
    query: tl.tensor,
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    page_tables: tl.tensor,
    pieces: tl.tensor,
    sinks: tl.tensor,
    output: tl.tensor,
    partials: tl.tensor,
    log_sums: tl.tensor,
    scale: tl.float32,
    soft_cap: tl.float32,
    query_stride: tl.int64,
    table_stride: tl.int64,
    ROW_TILES: tl.constexpr,
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
    """Attend with the query heads of one key head over one piece of a sequence's keys."""
    piece = pieces + tl.program_id(0) * 4
    sequence, first, end, partial = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2), tl.load(piece + 3)
    if sequence < 0:  # a graph has programs for more pieces than there are
        return
    kv_head = tl.program_id(1) // ROW_TILES
    members = (tl.program_id(1) % ROW_TILES) * ROWS + tl.arange(0, ROWS)
    is_row = members < GROUP
    heads, dims = kv_head * GROUP + members, tl.arange(0, BLOCK_DIM)
    is_number = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    rows = query + sequence.to(tl.int64) * query_stride + heads[:, None] * HEAD_DIM + dims[None, :]
    queries = tl.load(rows, mask=is_number, other=0.0)
    table = page_tables + sequence.to(tl.int64) * table_stride
    positions = tl.zeros((ROWS,), tl.int32) + (end - 1)
    whole = first + (end - first) // KEYS * KEYS
    top, total, result = add_span(
        queries, key_pages, value_pages, key_scales, value_scales, table, kv_head, first, whole, end, positions, 0,
        scale, soft_cap, False, SCALED, STORED, CAPPED, WIDE, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, PAGE_SIZE, ROWS, KEYS,
    )  # fmt: skip
    if partial < 0:
        if sinks is not None:
            total += tl.exp2(tl.load(sinks + heads, mask=is_row, other=0.0) * LOG2_E - top)
        row = sequence.to(tl.int64) * (NUM_KV_HEADS * GROUP) + heads
        result /= total[:, None]
        tl.store(output + row[:, None] * HEAD_DIM + dims[None, :], result.to(output.dtype.element_ty), mask=is_number)
    else:
        row = partial.to(tl.int64) * (NUM_KV_HEADS * GROUP) + heads
        result /= total[:, None]
        tl.store(partials + row[:, None] * HEAD_DIM + dims[None, :], result, mask=is_number)
        tl.store(log_sums + row, top + tl.log2(total), mask=is_row)


@triton.jit
def merge(
    partials: tl.tensor,
    log_sums: tl.tensor,
    merges: tl.tensor,
    sinks: tl.tensor,
    output: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PARTIALS: tl.constexpr,
) -> None:
    """Merge the partial results of one head of one sequence, PARTIALS at a time."""
    entry = merges + tl.program_id(0) * 3
    sequence, first, count = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    if count == 0:
        return
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_DIM)
    top = tl.full((1,), -1e30, tl.float32)
    total = tl.zeros((1,), tl.float32)
    result = tl.zeros((BLOCK_DIM,), tl.float32)
    for start in tl.range(0, count, PARTIALS):
        index = start + tl.arange(0, PARTIALS)
        is_real = index < count
        rows = (first + index).to(tl.int64) * NUM_HEADS + head
        sums = tl.load(log_sums + rows, mask=is_real, other=float("-inf"))
        is_number = is_real[:, None] & (dims < HEAD_DIM)[None, :]
        outputs = tl.load(partials + rows[:, None] * HEAD_DIM + dims[None, :], mask=is_number, other=0.0)
        new_top = tl.maximum(top, tl.max(sums, 0))
        fade = tl.exp2(top - new_top)
        weights = tl.exp2(sums - new_top)
        total = total * fade + tl.sum(weights, 0)
        result = result * fade + tl.sum(outputs * weights[:, None], 0)
        top = new_top
    if sinks is not None:
        total += tl.exp2(tl.load(sinks + head) * LOG2_E - top)
    place = (sequence.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
    tl.store(output + place + dims, (result / total).to(output.dtype.element_ty), mask=dims < HEAD_DIM)
