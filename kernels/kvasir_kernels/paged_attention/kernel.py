"""Attention over paged keys and values on a GPU: one kernel for chunks, two for decodes. See work.py for the cut.

    decodes   piece 0 -> (output, log-sum) -.
              piece 1 -> (output, log-sum) --+-> merge: one weighted sum of all partial outputs of a head
              piece 2 -> (output, log-sum) -'
    chunks    tile -> prefix: keys that every row sees, unmasked -> diagonal: masked -> output; no tile beyond it

Softmax is computed as the keys come by, in powers of two (FlashAttention, Dao et al., 2022); partial results of one
row are merged by their log-sums (Flash-Decoding, Dao et al., 2023); pages: PagedAttention (Kwon et al., 2023).
No slot outside of a context is read.

Keys and values of 8 bits become the query's dtype, which holds each of them exactly, before they are multiplied: then
sums are float32 sums, within a tile and over the tiles. (Tensor cores add float8 products in fewer bits, which shows
from some thousand keys on.)
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.cut_decodes.kernel import cut_step
from kvasir_kernels.float8.kernel import as_stored, stored_as, widened
from kvasir_kernels.launch import (
    loads_while_it_multiplies,
    multiplies_in_float32,
    multiplies_in_registers,
    num_multiprocessors,
    power_of_two,
)
from kvasir_kernels.paged_attention.work import Cut, Work
from kvasir_kernels.paged_cache import MAX_GPU_HEAD_DIM, LayerCache, ScoreChanges, StepAttention

_LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and keys that a program has at hand at a time, and the options that it is compiled with."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def can_attend(query: Tensor) -> bool:
    """Whether the kernels take heads of this size."""
    return query.shape[-1] <= MAX_GPU_HEAD_DIM


def paged_attention(
    query: Tensor,
    cache: LayerCache,
    batch: StepAttention,
    scale: float,
    window: int | None,
    changes: ScoreChanges | None = None,
) -> Tensor:
    """See reference.py; a query head's numbers lie side by side. Heads of up to MAX_GPU_HEAD_DIM numbers."""
    query = query if query.stride()[1:] == (query.shape[2], 1) else query.contiguous()
    changes = changes or ScoreChanges()
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_kv_heads = cache.key.shape[2]
    group_size = query.shape[1] // num_kv_heads
    cache_bytes = cache.key.dtype.itemsize
    decode_tile, chunk_tile = tile_of_decode(query, group_size, cache_bytes), tile_of_chunk(query, cache_bytes)
    num_columns = num_kv_heads * triton.cdiv(group_size, decode_tile.rows)
    num_pieces = triton.cdiv(_PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors(query.device), num_columns)
    cut = Cut(window, group_size, chunk_tile.rows, num_pieces, decode_tile.keys)
    work = batch.work.get(cut)
    if work is None:
        work = batch.work[cut] = cut_step(cut, batch, query.device)
    scores = _Scores(scale, window, changes)
    if len(work.pieces):
        _attend_decodes(query, cache, batch.page_tables, scores, work, decode_tile, output)
    if len(work.tiles):
        _attend_chunks(query, cache, batch.page_tables, scores, work, chunk_tile, output)
    return output


@dataclass(frozen=True, slots=True)
class _Scores:
    """What becomes of the products of queries and keys."""

    scale: float
    window: int | None
    changes: ScoreChanges


_PROGRAMS_PER_MULTIPROCESSOR = 2
"""Decode programs wait for memory: a second one has its loads in flight meanwhile. Not yet measured."""


def tile_of_decode(query: Tensor, group_size: int, cache_bytes: int = 2) -> Tile:
    """16 rows are the least that tensor cores take; a tile's keys and values are 8 KiB each.

    The address of a key waits for its page's number: of five stages two have keys and values in flight. With three,
    nothing would be loaded while a tile is computed.
    """
    if query.dtype == torch.float32:
        return Tile(16, 16, num_warps=4, num_stages=1)
    rows = min(64, max(16, power_of_two(group_size)))
    keys = 64 if query.shape[2] <= 64 and rows <= 32 else 32
    if not loads_while_it_multiplies():
        return Tile(rows, keys, num_warps=4, num_stages=2)
    if cache_bytes == 1 and query.shape[2] <= 128:
        keys *= 2
    return Tile(rows, keys, num_warps=4, num_stages=5)


def tile_of_chunk(query: Tensor, cache_bytes: int = 2) -> Tile:
    """128 rows by 64 keys for heads of up to 128, as others found best on Hopper; not yet measured here.

    Less where tensor cores take their operands from registers, and still less where those are widened there.
    """
    if query.dtype == torch.float32:
        return Tile(16, 16, num_warps=8, num_stages=1)
    is_small = multiplies_in_registers() or not loads_while_it_multiplies()
    shrink = 2 if is_small and cache_bytes == 1 else 1
    if query.shape[2] > 128:
        return Tile(64 // shrink, 32, num_warps=8 // shrink, num_stages=2)
    keys = 32 if query.shape[2] > 64 and is_small else 64
    return Tile(128 // shrink, keys, num_warps=8 // shrink, num_stages=2)


def _constants(query: Tensor, cache: LayerCache, scores: _Scores, tile: Tile) -> dict[str, int | bool | str]:
    """What the kernels are compiled for."""
    _, num_heads, head_dim = query.shape
    _, page_size, num_kv_heads, _ = cache.key.shape
    return {
        "SCALED": cache.scaled_by,
        "STORED": stored_as(cache.key.dtype),
        "CAPPED": scores.changes.soft_cap is not None,
        "WIDE": multiplies_in_float32(query),
        "GROUP": num_heads // num_kv_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": max(16, power_of_two(head_dim)),
        "PAGE_SIZE": page_size,
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _attend_decodes(
    query: Tensor, cache: LayerCache, page_tables: Tensor, scores: _Scores, work: Work, tile: Tile, output: Tensor
) -> None:
    _, num_heads, head_dim = query.shape
    constants = _constants(query, cache, scores, tile)
    row_tiles = triton.cdiv(int(constants["GROUP"]), tile.rows)
    partials = torch.empty(work.num_partials, num_heads, head_dim, dtype=torch.float32, device=query.device)
    log_sums = torch.empty(work.num_partials, num_heads, dtype=torch.float32, device=query.device)
    sinks = scores.changes.sinks
    _decode[(len(work.pieces), cache.key.shape[2] * row_tiles)](
        query, as_stored(cache.key), as_stored(cache.value), *cache.scale_tensors, page_tables, work.pieces, sinks,
        output, partials, log_sums, scores.scale, scores.changes.soft_cap or 1.0, query.stride(0),
        page_tables.stride(0), ROW_TILES=row_tiles, **constants,
    )  # fmt: skip
    if len(work.merges):
        _merge[(len(work.merges), num_heads)](
            partials, log_sums, work.merges, sinks, output, NUM_HEADS=num_heads, HEAD_DIM=head_dim,
            BLOCK_DIM=constants["BLOCK_DIM"], PARTIALS=32, num_warps=4,
        )  # fmt: skip


def _attend_chunks(
    query: Tensor, cache: LayerCache, page_tables: Tensor, scores: _Scores, work: Work, tile: Tile, output: Tensor
) -> None:
    _extend[(len(work.tiles), cache.key.shape[2])](
        query, as_stored(cache.key), as_stored(cache.value), *cache.scale_tensors, page_tables, work.tiles,
        scores.changes.sinks, output, scores.scale, scores.changes.soft_cap or 1.0, scores.window or 0,
        query.stride(0), page_tables.stride(0),
        WINDOWED=scores.window is not None, **_constants(query, cache, scores, tile),
    )  # fmt: skip


# Nothing that changes from step to step is compiled in.
@triton.jit(do_not_specialize=["table_stride"])
def _decode(
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
    top, total, result = _add_span(
        queries, key_pages, value_pages, key_scales, value_scales, table, kv_head, first, whole, end, positions, 0,
        scale, soft_cap, False, SCALED, STORED, CAPPED, WIDE, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, PAGE_SIZE, ROWS, KEYS,
    )  # fmt: skip
    if partial < 0:
        if sinks is not None:
            total += tl.exp2(tl.load(sinks + heads, mask=is_row, other=0.0) * _LOG2_E - top)
        row = sequence.to(tl.int64) * (NUM_KV_HEADS * GROUP) + heads
        result /= total[:, None]
        tl.store(output + row[:, None] * HEAD_DIM + dims[None, :], result.to(output.dtype.element_ty), mask=is_number)
    else:
        row = partial.to(tl.int64) * (NUM_KV_HEADS * GROUP) + heads
        result /= total[:, None]
        tl.store(partials + row[:, None] * HEAD_DIM + dims[None, :], result, mask=is_number)
        tl.store(log_sums + row, top + tl.log2(total), mask=is_row)


@triton.jit
def _merge(
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
        total += tl.exp2(tl.load(sinks + head) * _LOG2_E - top)
    place = (sequence.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
    tl.store(output + place + dims, (result / total).to(output.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize=["table_stride", "window"])
def _extend(
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
    top, total, result = _add_span(
        queries, key_pages, value_pages, key_scales, value_scales, table, kv_head, first, diagonal, end,
        start_position + tokens, window, scale, soft_cap,
        WINDOWED, SCALED, STORED, CAPPED, WIDE, NUM_KV_HEADS, HEAD_DIM, BLOCK_DIM, PAGE_SIZE, ROWS, KEYS,
    )  # fmt: skip
    if sinks is not None:
        total += tl.exp2(tl.load(sinks + heads, mask=is_row, other=0.0) * _LOG2_E - top)
    result /= total[:, None]
    targets = output + (query_rows * (NUM_KV_HEADS * GROUP) + heads)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(targets, result.to(output.dtype.element_ty), mask=is_number)


@triton.jit
def _add_span(
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
    factor = scale / soft_cap if CAPPED else scale * _LOG2_E
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
        scores = (1.0 - 2.0 / (tl.exp2(scores * (2.0 * _LOG2_E)) + 1.0)) * (soft_cap * _LOG2_E)
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
