"""How a step's attention is cut into programs that take about equally long, whatever the sequences' lengths.

Decodes are cut along the keys. No piece is much longer than the batch's keys divided by the programs that the device
has room for, so one long context among short ones is spread over many programs (LightLLM's even cut):

    context 9000  |=======|=======|=======|=======|=======|       pieces of one sequence: partial results,
    context 1500  |======|                                        merged afterwards
    context   40  |                                               one piece: written where it belongs

Chunks are cut along the rows: a row is one query head of one token, and all heads of a key head stand side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Table = NDArray[np.int32]

_ALIGNMENT = 4
"""In numbers of 4 bytes: Triton compiles once more for an address that 16 doesn't divide."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What the cut depends on beside the lengths; the layers of a model share one, or two where some have a window.

    group_size: query heads per key head. rows: of a chunk, per program.
    num_pieces: how many pieces fill the device. keys: a piece's length is a multiple of it, and at least twice it.
    """

    window: int | None
    group_size: int
    rows: int
    num_pieces: int
    keys: int


@dataclass(frozen=True, slots=True)
class Work:
    """What each program does, in int32 on the device.

    pieces: [W, 4], of decodes: sequence, first key, end of keys, and where its partial result goes (-1: it is whole).
    merges: [C, 3]: sequence, first partial result, their number.
    tiles: [B, 5], of chunks: sequence, first row, first query row, new tokens, context; those with most keys first.
    num_partials: partial results in all.
    """

    pieces: Tensor
    merges: Tensor
    tiles: Tensor
    num_partials: int


def cut_work(
    cut: Cut, query_lens: Sequence[int], context_lens: Sequence[int], num_decodes: int, device: torch.device
) -> Work:
    """Cut a step's attention; see AttentionBatch for the lengths. One copy to the device, which nobody waits for."""
    pieces, merges, num_partials = cut_decodes(cut, context_lens[:num_decodes])
    tiles = cut_chunks(cut, query_lens, context_lens, num_decodes)
    tables = (pieces, merges, tiles)
    ends = np.cumsum([-(-table.size // _ALIGNMENT) * _ALIGNMENT for table in tables])
    buffer = np.zeros(int(ends[-1]), dtype=np.int32)
    starts = [0, *ends[:-1].tolist()]
    for start, table in zip(starts, tables, strict=True):
        buffer[start : start + table.size] = table.ravel()
    host = torch.from_numpy(buffer)
    on_device = host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
    pieces_there, merges_there, tiles_there = (
        on_device[start : start + table.size].view(table.shape) for start, table in zip(starts, tables, strict=True)
    )
    return Work(pieces_there, merges_there, tiles_there, num_partials)


def cut_decodes(cut: Cut, context_lens: Sequence[int]) -> tuple[Table, Table, int]:
    """Return the pieces, the merges and the number of partial results of the decodes."""
    ends = np.array(context_lens, dtype=np.int64)
    firsts = np.zeros_like(ends) if cut.window is None else np.maximum(ends - cut.window, 0)
    lengths = ends - firsts
    longest = max(-(-int(lengths.sum()) // cut.num_pieces), 2 * cut.keys)
    counts = -(-lengths // longest)
    # Equal pieces of one sequence, of whole tiles of keys: fewer may do than were counted.
    sizes = -(-lengths // (np.maximum(counts, 1) * cut.keys)) * cut.keys
    counts = -(-lengths // np.maximum(sizes, 1))
    sequences = np.repeat(np.arange(len(ends)), counts)
    index = np.arange(len(sequences)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = firsts[sequences] + index * sizes[sequences]
    is_partial = counts[sequences] > 1
    partials = np.where(is_partial, np.cumsum(is_partial) - 1, -1)
    pieces = np.stack([sequences, starts, np.minimum(starts + sizes[sequences], ends[sequences]), partials], axis=1)
    split = np.flatnonzero(counts > 1)
    merges = np.stack([split, np.cumsum(counts[split]) - counts[split], counts[split]], axis=1)
    return pieces.astype(np.int32), merges.astype(np.int32), int(is_partial.sum())


def cut_chunks(cut: Cut, query_lens: Sequence[int], context_lens: Sequence[int], num_decodes: int) -> Table:
    """Return the tiles of the sequences after the first `num_decodes`, the heaviest first: they end together."""
    new = np.array(query_lens, dtype=np.int64)
    contexts = np.array(context_lens, dtype=np.int64)
    query_rows = np.cumsum(new) - new
    counts = -(-new * cut.group_size // cut.rows)
    counts[:num_decodes] = 0
    sequences = np.repeat(np.arange(len(new)), counts)
    index = np.arange(len(sequences)) - np.repeat(np.cumsum(counts) - counts, counts)
    first_rows = index * cut.rows
    tiles = np.stack([sequences, first_rows, query_rows[sequences], new[sequences], contexts[sequences]], axis=1)
    positions = contexts[sequences] - new[sequences] + first_rows // cut.group_size
    num_keys = positions if cut.window is None else np.minimum(positions, cut.window)
    return tiles[np.argsort(-num_keys, kind="stable")].astype(np.int32)
