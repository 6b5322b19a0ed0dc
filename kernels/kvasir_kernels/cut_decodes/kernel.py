"""The cut of decodes on a GPU: one program for the whole step. What is computed is told in work.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.cut_decodes.reference import most_merges, most_pieces
from kvasir_kernels.launch import power_of_two
from kvasir_kernels.paged_attention.work import Cut, Work, cut_work
from kvasir_kernels.paged_cache import PaddedDecodes, StepAttention


def cut_step(cut: Cut, batch: StepAttention, device: torch.device) -> Work:
    """The cut of any step: by whoever knows its lengths, the host or the device."""
    if isinstance(batch, PaddedDecodes):
        return cut_decodes(cut, batch.context_lens)
    return cut_work(cut, batch.query_lens, batch.context_lens, batch.num_decodes, device)


def cut_decodes(cut: Cut, context_lens: Tensor) -> Work:
    """See reference.py."""
    num_rows = len(context_lens)
    num_pieces, num_merges = most_pieces(cut, num_rows), most_merges(cut, num_rows)
    pieces = torch.empty(num_pieces, 4, dtype=torch.int32, device=context_lens.device)
    merges = torch.empty(num_merges, 3, dtype=torch.int32, device=context_lens.device)
    _cut[(1,)](
        context_lens, pieces, merges, num_rows, num_pieces, num_merges,
        SHARES=cut.num_pieces, KEYS=cut.keys, WINDOW=cut.window or 0, ROWS=power_of_two(num_rows),
        PIECES=power_of_two(num_pieces), num_warps=4,
    )  # fmt: skip
    return Work(pieces, merges, tiles=pieces.new_empty(0, 5), num_partials=num_pieces)


# Graphs of many sizes share what is compiled.
@triton.jit(do_not_specialize=["num_rows", "num_pieces", "num_merges"])
def _cut(
    context_lens: tl.tensor,
    pieces: tl.tensor,
    merges: tl.tensor,
    num_rows: tl.int32,
    num_pieces: tl.int32,
    num_merges: tl.int32,
    SHARES: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    rows = tl.arange(0, ROWS)
    ends = tl.load(context_lens + rows, mask=rows < num_rows, other=0)
    firsts = tl.maximum(ends - WINDOW, 0) if WINDOW > 0 else tl.zeros((ROWS,), tl.int32)
    lengths = ends - firsts
    total = tl.sum(lengths.to(tl.int64), 0)
    longest = tl.maximum(((total + SHARES - 1) // SHARES).to(tl.int32), 2 * KEYS)
    counts = (lengths + longest - 1) // longest
    room = tl.maximum(counts, 1) * KEYS
    sizes = tl.maximum((lengths + room - 1) // room, 1) * KEYS
    counts = (lengths + sizes - 1) // sizes
    is_split = counts > 1
    begins = tl.cumsum(counts, 0) - counts
    partial_counts = tl.where(is_split, counts, 0)
    partials = tl.cumsum(partial_counts, 0) - partial_counts
    for index in tl.range(0, tl.max(counts, 0)):
        is_piece = index < counts
        place = pieces + (begins + index) * 4
        start = firsts + index * sizes
        tl.store(place, rows, mask=is_piece)
        tl.store(place + 1, start, mask=is_piece)
        tl.store(place + 2, tl.minimum(start + sizes, ends), mask=is_piece)
        tl.store(place + 3, tl.where(is_split, partials + index, -1), mask=is_piece)
    place = merges + (tl.cumsum(is_split.to(tl.int32), 0) - 1) * 3
    tl.store(place, rows, mask=is_split)
    tl.store(place + 1, partials, mask=is_split)
    tl.store(place + 2, counts, mask=is_split)
    spare = tl.arange(0, PIECES)
    tl.store(pieces + spare * 4, -1, mask=(spare >= tl.sum(counts, 0)) & (spare < num_pieces))
    tl.store(merges + spare * 3 + 2, 0, mask=(spare >= tl.sum(is_split.to(tl.int32), 0)) & (spare < num_merges))
