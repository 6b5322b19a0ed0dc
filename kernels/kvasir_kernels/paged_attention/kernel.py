"""Attention over paged keys and values on a GPU: one kernel for chunks, two for decodes. See work.py for the cut.

    decodes   piece 0 -> (output, log-sum) -.
              piece 1 -> (output, log-sum) --+-> merge: one weighted sum of all partial outputs of a head
              piece 2 -> (output, log-sum) -'
    chunks    tile -> prefix: keys that every row sees, unmasked -> diagonal: masked -> output; no tile beyond it

Softmax is computed as the keys come by, in powers of two (FlashAttention, Dao et al., 2022); partial results of one
row are merged by their log-sums (Flash-Decoding, Dao et al., 2023); pages: PagedAttention (Kwon et al., 2023).
No slot outside of a context is read.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.launch import multiplies_in_float32, multiplies_in_registers, num_multiprocessors, power_of_two
from kvasir_kernels.paged_attention.work import Cut, Work, cut_work
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache

MAX_HEAD_DIM = 256
"""Beyond it a tile's keys, values and outputs outgrow registers and shared memory."""

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and keys that a program has at hand at a time, and the options that it is compiled with."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def can_attend(query: Tensor) -> bool:
    """Whether the kernels take heads of this size."""
    return query.shape[-1] <= MAX_HEAD_DIM


def paged_attention(
    query: Tensor, cache: LayerCache, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """See reference.py; a query head's numbers lie side by side. Heads of up to MAX_HEAD_DIM numbers."""
    query = query if query.stride()[1:] == (query.shape[2], 1) else query.contiguous()
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_kv_heads = cache.key.shape[2]
    group_size = query.shape[1] // num_kv_heads
    decode_tile, chunk_tile = tile_of_decode(query, group_size), tile_of_chunk(query)
    num_columns = num_kv_heads * triton.cdiv(group_size, decode_tile.rows)
    num_pieces = triton.cdiv(_PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors(query.device), num_columns)
    cut = Cut(window, group_size, chunk_tile.rows, num_pieces, decode_tile.keys)
    work = batch.work.get(cut)
    if work is None:
        lengths = (batch.query_lens, batch.context_lens, batch.num_decodes)
        work = batch.work[cut] = cut_work(cut, *lengths, query.device)
    if len(work.pieces):
        _attend_decodes(query, cache, batch.page_tables, scale, work, decode_tile, output)
    if len(work.tiles):
        _attend_chunks(query, cache, batch.page_tables, scale, window, work, chunk_tile, output)
    return output


_PROGRAMS_PER_MULTIPROCESSOR = 2
"""Decode programs wait for memory: a second one has its loads in flight meanwhile. Not yet measured."""


def tile_of_decode(query: Tensor, group_size: int) -> Tile:
    """16 rows are the least that tensor cores take; a tile's keys and values are 8 KiB each in half precision."""
    if query.dtype == torch.float32:
        return Tile(16, 16, num_warps=4, num_stages=1)
    rows = min(64, max(16, power_of_two(group_size)))
    return Tile(rows, 64 if query.shape[2] <= 64 else 32, num_warps=4, num_stages=3)


def tile_of_chunk(query: Tensor) -> Tile:
    """128 rows by 64 keys for heads of up to 128, as others found best on Hopper; not yet measured here."""
    if query.dtype == torch.float32:
        return Tile(16, 16, num_warps=4, num_stages=1)
    if query.shape[2] > 128:
        return Tile(64, 32, num_warps=8, num_stages=2)
    keys = 32 if query.shape[2] > 64 and multiplies_in_registers() else 64
    return Tile(128, keys, num_warps=8, num_stages=2)


def _attend_decodes(
    query: Tensor, cache: LayerCache, page_tables: Tensor, scale: float, work: Work, tile: Tile, output: Tensor
) -> None:
    _, num_heads, head_dim = query.shape
    _, page_size, num_kv_heads, _ = cache.key.shape
    group_size = num_heads // num_kv_heads
    row_tiles = triton.cdiv(group_size, tile.rows)
    block_dim = max(16, power_of_two(head_dim))
    partials = torch.empty(work.num_partials, num_heads, head_dim, dtype=torch.float32, device=query.device)
    log_sums = torch.empty(work.num_partials, num_heads, dtype=torch.float32, device=query.device)
    _decode[(len(work.pieces), num_kv_heads * row_tiles)](
        query, cache.key, cache.value, page_tables, work.pieces, output, partials, log_sums,
        scale * _LOG2_E, query.stride(0), page_tables.stride(0),
        GROUP=group_size, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, PAGE_SIZE=page_size,
        ROWS=tile.rows, KEYS=tile.keys, BLOCK_DIM=block_dim, ROW_TILES=row_tiles,
        WIDE=multiplies_in_float32(query), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    if len(work.merges):
        _merge[(len(work.merges), num_heads)](
            partials, log_sums, work.merges, output,
            NUM_HEADS=num_heads, HEAD_DIM=head_dim, BLOCK_DIM=block_dim, PARTIALS=32, num_warps=4,
        )  # fmt: skip


def _attend_chunks(
    query: Tensor,
    cache: LayerCache,
    page_tables: Tensor,
    scale: float,
    window: int | None,
    work: Work,
    tile: Tile,
    output: Tensor,
) -> None:
    _, num_heads, head_dim = query.shape
    _, page_size, num_kv_heads, _ = cache.key.shape
    _extend[(len(work.tiles), num_kv_heads)](
        query, cache.key, cache.value, page_tables, work.tiles, output,
        scale * _LOG2_E, window or 0, query.stride(0), page_tables.stride(0),
        WINDOWED=window is not None,
        GROUP=num_heads // num_kv_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, PAGE_SIZE=page_size,
        ROWS=tile.rows, KEYS=tile.keys, BLOCK_DIM=max(16, power_of_two(head_dim)),
        WIDE=multiplies_in_float32(query), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


# Nothing that changes from step to step is compiled in.
@triton.jit(do_not_specialize=["table_stride"])
def _decode(
    query: tl.tensor,
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    page_tables: tl.tensor,
    pieces: tl.tensor,
    output: tl.tensor,
    partials: tl.tensor,
    log_sums: tl.tensor,
    scale: tl.float32,
    query_stride: tl.int64,
    table_stride: tl.int64,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROW_TILES: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Attend with the query heads of one key head over one piece of a sequence's keys."""
    piece = pieces + tl.program_id(0) * 4
    sequence, first, end, partial = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2), tl.load(piece + 3)
    kv_head = tl.program_id(1) // ROW_TILES
    members = (tl.program_id(1) % ROW_TILES) * ROWS + tl.arange(0, ROWS)
    is_row = members < GROUP
    heads = kv_head * GROUP + members
    dims = tl.arange(0, BLOCK_DIM)
    is_number = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    rows = query + sequence.to(tl.int64) * query_stride + heads[:, None] * HEAD_DIM + dims[None, :]
    queries = tl.load(rows, mask=is_number, other=0.0)
    table = page_tables + sequence.to(tl.int64) * table_stride
    keys, values = key_pages + kv_head * HEAD_DIM, value_pages + kv_head * HEAD_DIM
    top = tl.full((ROWS,), -1e30, tl.float32)  # finite, so that a row which sees no key of a tile stays as it is
    total = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    positions = tl.zeros((ROWS,), tl.int32) + (end - 1)
    whole = first + (end - first) // KEYS * KEYS
    for start in tl.range(first, whole, KEYS):
        top, total, result = _add_keys(
            queries, keys, values, table, start, positions, end, 0, scale, top, total, result,
            False, False, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, KEYS, BLOCK_DIM, WIDE,
        )  # fmt: skip
    for start in tl.range(whole, end, KEYS):
        top, total, result = _add_keys(
            queries, keys, values, table, start, positions, end, 0, scale, top, total, result,
            True, False, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, KEYS, BLOCK_DIM, WIDE,
        )  # fmt: skip
    result /= total[:, None]
    if partial < 0:
        row = sequence.to(tl.int64) * (NUM_KV_HEADS * GROUP) + heads
        tl.store(output + row[:, None] * HEAD_DIM + dims[None, :], result.to(output.dtype.element_ty), mask=is_number)
    else:
        row = partial.to(tl.int64) * (NUM_KV_HEADS * GROUP) + heads
        tl.store(partials + row[:, None] * HEAD_DIM + dims[None, :], result, mask=is_number)
        tl.store(log_sums + row, top + tl.log2(total), mask=is_row)


@triton.jit
def _merge(
    partials: tl.tensor,
    log_sums: tl.tensor,
    merges: tl.tensor,
    output: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PARTIALS: tl.constexpr,
) -> None:
    """Merge the partial results of one head of one sequence, PARTIALS at a time."""
    entry = merges + tl.program_id(0) * 3
    sequence, first, count = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
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
    place = (sequence.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
    tl.store(output + place + dims, (result / total).to(output.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize=["table_stride", "window"])
def _extend(
    query: tl.tensor,
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    page_tables: tl.tensor,
    tiles: tl.tensor,
    output: tl.tensor,
    scale: tl.float32,
    window: tl.int32,
    query_stride: tl.int64,
    table_stride: tl.int64,
    WINDOWED: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WIDE: tl.constexpr,
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
    keys, values = key_pages + kv_head * HEAD_DIM, value_pages + kv_head * HEAD_DIM
    start_position = context - num_new
    positions = start_position + tokens
    nearest = start_position + first_row // GROUP
    end = start_position + (tl.minimum(first_row + ROWS, num_new * GROUP) - 1) // GROUP + 1
    first = tl.maximum(nearest - window + 1, 0) if WINDOWED else 0
    top = tl.full((ROWS,), -1e30, tl.float32)  # finite, so that a row which sees no key of a tile stays as it is
    total = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    diagonal = first + (nearest + 1 - first) // KEYS * KEYS
    for start in tl.range(first, diagonal, KEYS):
        top, total, result = _add_keys(
            queries, keys, values, table, start, positions, end, window, scale, top, total, result,
            WINDOWED, WINDOWED, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, KEYS, BLOCK_DIM, WIDE,
        )  # fmt: skip
    for start in tl.range(diagonal, end, KEYS):
        top, total, result = _add_keys(
            queries, keys, values, table, start, positions, end, window, scale, top, total, result,
            True, WINDOWED, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, KEYS, BLOCK_DIM, WIDE,
        )  # fmt: skip
    result /= total[:, None]
    targets = output + (query_rows * (NUM_KV_HEADS * GROUP) + heads)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(targets, result.to(output.dtype.element_ty), mask=is_number)


@triton.jit
def _add_keys(
    queries: tl.tensor,
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    table: tl.tensor,
    start: tl.tensor,
    positions: tl.tensor,
    end: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    result: tl.tensor,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    WIDE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the running maximum, sum and result of the rows after KEYS more keys, which start at `start`.

    MASKED: some rows don't see some of the keys, or there are fewer; none from `end` on is read.
    """
    places = start + tl.arange(0, KEYS)
    dims = tl.arange(0, BLOCK_DIM)
    if MASKED:
        pages = tl.load(table + places // PAGE_SIZE, mask=places < end, other=0)
    else:
        pages = tl.load(table + places // PAGE_SIZE)
    offsets = (pages * PAGE_SIZE + places % PAGE_SIZE) * (NUM_KV_HEADS * HEAD_DIM)
    pointers = offsets[:, None] + dims[None, :]
    if MASKED or HEAD_DIM != BLOCK_DIM:
        is_number = (places < end)[:, None] & (dims < HEAD_DIM)[None, :]
        keys = tl.load(key_pages + pointers, mask=is_number, other=0.0)
        values = tl.load(value_pages + pointers, mask=is_number, other=0.0)
    else:
        keys = tl.load(key_pages + pointers)
        values = tl.load(value_pages + pointers)
    if WIDE:
        queries, keys, values = queries.to(tl.float32), keys.to(tl.float32), values.to(tl.float32)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    if MASKED:
        is_seen = places[None, :] <= positions[:, None]
        if WINDOWED:
            is_seen = is_seen & (places[None, :] > positions[:, None] - window)
        scores = tl.where(is_seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    fade = tl.exp2(top - new_top)
    weights = tl.exp2(scores - new_top[:, None])
    total = total * fade + tl.sum(weights, 1)
    result = tl.dot(weights.to(values.dtype), values, result * fade[:, None], input_precision="ieee")
    return new_top, total, result
