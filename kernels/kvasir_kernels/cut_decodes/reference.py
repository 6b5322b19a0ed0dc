"""The cut of decodes whose lengths only the device knows, in plain torch: that of work.py, with room for any lengths.

A graph launches as many programs as there may ever be work for. Those that have none are told so and end at once.
"""

import numpy as np
import torch
from torch import Tensor

from kvasir_kernels.paged_attention import work
from kvasir_kernels.paged_attention.work import Cut, Work


def most_pieces(cut: Cut, num_rows: int) -> int:
    """No cut of so many rows has more: each row's last piece may be short, all others fill their share."""
    return cut.num_pieces + num_rows


def most_merges(cut: Cut, num_rows: int) -> int:
    """No more rows are split: each of these has more than one share of all keys."""
    return min(cut.num_pieces, num_rows)


def cut_decodes(cut: Cut, context_lens: Tensor) -> Work:
    """Cut decodes with contexts of these lengths, [S] int32; 0 is padding.

    Unused pieces are of sequence -1, unused merges of no partial result; see Work for the rest.
    """
    num_rows = len(context_lens)
    pieces = np.zeros((most_pieces(cut, num_rows), 4), dtype=np.int32)
    merges = np.zeros((most_merges(cut, num_rows), 3), dtype=np.int32)
    pieces[:, 0] = -1
    used_pieces, used_merges, _ = work.cut_decodes(cut, context_lens.tolist())
    pieces[: len(used_pieces)], merges[: len(used_merges)] = used_pieces, used_merges
    pieces_there, merges_there = (torch.from_numpy(table).to(context_lens.device) for table in (pieces, merges))
    return Work(pieces_there, merges_there, tiles=pieces_there.new_empty(0, 5), num_partials=len(pieces))
