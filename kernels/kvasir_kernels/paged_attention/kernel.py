"""Attention over paged keys and values on a GPU: one kernel for chunks, two for decodes. See work.py for the cut,
decode_kernel.py, extend_kernel.py and span_kernel.py for what runs on the device.

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
from torch import Tensor

from kvasir_kernels.cut_decodes.kernel import cut_step
from kvasir_kernels.float8.kernel import as_stored, stored_as
from kvasir_kernels.launch import multiplies_in_float32, num_multiprocessors, power_of_two
from kvasir_kernels.paged_attention.decode_kernel import decode, merge
from kvasir_kernels.paged_attention.extend_kernel import extend
from kvasir_kernels.paged_attention.tiles import Tile, tile_of_chunk, tile_of_decode
from kvasir_kernels.paged_attention.work import Cut, Work
from kvasir_kernels.paged_cache import MAX_GPU_HEAD_DIM, LayerCache, ScoreChanges, StepAttention


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
    decode_tile, chunk_tile = tile_of_decode(query, cache), tile_of_chunk(query, cache)
    num_columns = num_kv_heads * triton.cdiv(group_size, decode_tile.rows)
    num_pieces = triton.cdiv(decode_tile.programs * num_multiprocessors(query.device), num_columns)
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
    decode[(len(work.pieces), cache.key.shape[2] * row_tiles)](
        query, as_stored(cache.key), as_stored(cache.value), *cache.scale_tensors, page_tables, work.pieces, sinks,
        output, partials, log_sums, scores.scale, scores.changes.soft_cap or 1.0, query.stride(0),
        page_tables.stride(0), ROW_TILES=row_tiles, **constants,
    )  # fmt: skip
    if len(work.merges):
        merge[(len(work.merges), num_heads)](
            partials, log_sums, work.merges, sinks, output, NUM_HEADS=num_heads, HEAD_DIM=head_dim,
            BLOCK_DIM=constants["BLOCK_DIM"], PARTIALS=32, num_warps=4,
        )  # fmt: skip


def _attend_chunks(
    query: Tensor, cache: LayerCache, page_tables: Tensor, scores: _Scores, work: Work, tile: Tile, output: Tensor
) -> None:
    extend[(len(work.tiles), cache.key.shape[2])](
        query, as_stored(cache.key), as_stored(cache.value), *cache.scale_tensors, page_tables, work.tiles,
        scores.changes.sinks, output, scores.scale, scores.changes.soft_cap or 1.0, scores.window or 0,
        query.stride(0), page_tables.stride(0),
        WINDOWED=scores.window is not None, **_constants(query, cache, scores, tile),
    )  # fmt: skip
