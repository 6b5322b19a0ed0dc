"""Random choices by inversion of the running sum, for many rows at once. Each row's arithmetic is its own."""

import torch
from torch import Tensor

_BLOCK = 512
"""Of a row's running sum: sums of blocks are found first, then the place within one block."""

_NUM_CANDIDATES = 1024
"""Likeliest tokens among which a filtered row is drawn if all that it may draw are among them; else it is sorted.

A constant, not the largest top_k of the step, so that a row's result does not depend on the other rows.
"""


def draw(probabilities: Tensor, noise: Tensor) -> Tensor:
    """The index at which each row's running sum passes noise x its total. [R, V], [R] -> [R] int64."""
    width = probabilities.shape[-1]
    if width <= 2 * _BLOCK:
        return _invert(probabilities, noise[:, None] * probabilities.sum(dim=-1, keepdim=True))
    num_whole = width // _BLOCK
    whole = probabilities[:, : num_whole * _BLOCK]
    blocks = whole.reshape(len(whole), num_whole, _BLOCK).sum(dim=-1)
    if width % _BLOCK:
        rest = probabilities[:, num_whole * _BLOCK :].sum(dim=-1, keepdim=True)
        blocks = torch.cat([blocks, rest], dim=-1)
    sums = blocks.cumsum(dim=-1)
    target = noise[:, None] * sums[:, -1:]
    block = _first_beyond(sums, target)
    before = torch.where(block > 0, sums.gather(-1, (block - 1).clamp(min=0)), 0)
    index = block * _BLOCK + torch.arange(_BLOCK, device=probabilities.device)
    inside = probabilities.gather(-1, index.clamp(max=width - 1)).masked_fill(index >= width, 0)
    # A row of NaN ends anywhere, too: in the last block, even beyond the last token.
    return (block[:, 0] * _BLOCK + _invert(inside, target - before)).clamp(max=width - 1)


def _invert(weights: Tensor, target: Tensor) -> Tensor:
    """weights: [R, V], target: [R, 1] -> [R]."""
    return _first_beyond(weights.cumsum(dim=-1), target)[:, 0]


def _first_beyond(sums: Tensor, target: Tensor) -> Tensor:
    """The first index whose sum passes the target, or at which the sum is complete: [R, 1].

    Rounding can lift the target to the total, which no sum passes; and rows of NaN (all was forbidden) end anywhere.
    """
    index = torch.searchsorted(sums, target, right=True)
    complete = torch.searchsorted(sums, sums[:, -1:].contiguous(), right=False)
    return torch.minimum(index, complete).clamp(max=sums.shape[-1] - 1)


def draw_filtered(probabilities: Tensor, noise: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Like draw, among what min-p, top-k and top-p leave of each row, in order of probability."""
    width = probabilities.shape[-1]
    if width <= 4 * _NUM_CANDIDATES:  # sorting so few is no slower than looking for the best of them
        return _draw_sorted(probabilities, noise, top_k, top_p, min_p)
    values, ids = _candidates(probabilities)
    kept, is_exact = _filter_candidates(values, top_k, top_p, min_p)
    chosen = ids.gather(-1, _invert(kept, noise[:, None] * kept.sum(dim=-1, keepdim=True))[:, None])[:, 0]
    rows = torch.nonzero(~is_exact)[:, 0]
    if len(rows):
        chosen[rows] = _draw_sorted(probabilities[rows], noise[rows], top_k[rows], top_p[rows], min_p[rows])
    return chosen


def _candidates(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens: probabilities, descending, and ids, ascending where probabilities are equal."""
    values, ids = probabilities.topk(_NUM_CANDIDATES, dim=-1, sorted=False)
    ids, by_id = ids.sort(dim=-1)
    values, order = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _filter_candidates(values: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates' weights with what is excluded zeroed, and whether no token beyond them could be drawn: [R].

    Where all survivors of min-p and top-k are candidates, their mass is known. Where neither is in use, it is 1.
    Equal probabilities at the candidates' end make it unknown which of the equal ones are candidates: not exact.
    """
    rank = torch.arange(values.shape[-1], device=values.device)
    survives = (values >= min_p[:, None] * values[:, :1]) & (rank < top_k[:, None])
    kept = values.masked_fill(~survives, 0)
    has_all = ~survives[:, -1]
    is_unlimited = (min_p == 0) & (top_k > 2**30)
    mass = torch.where(has_all, kept.sum(dim=-1), 1.0)
    before = kept.cumsum(dim=-1) - kept
    beyond = (before >= (top_p * mass)[:, None]) & (rank > 0)
    kept = kept.masked_fill(beyond, 0)
    is_clear = ~((kept > 0) & (values == values[:, -1:])).any(dim=-1)
    return kept, is_clear & (has_all | is_unlimited)


def _draw_sorted(probabilities: Tensor, noise: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    values, order = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = filter_sorted(values, top_k, top_p, min_p)
    index = _invert(kept, noise[:, None] * kept.sum(dim=-1, keepdim=True))
    return order.gather(-1, index[:, None])[:, 0]


def filter_sorted(probabilities: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Zero what min-p, top-k and top-p exclude, in this order. probabilities: [R, V], each row descending."""
    rank = torch.arange(probabilities.shape[-1], device=probabilities.device)
    excluded = (probabilities < min_p[:, None] * probabilities[:, :1]) | (rank >= top_k[:, None])
    kept = probabilities.masked_fill(excluded, 0)
    kept = kept / kept.sum(dim=-1, keepdim=True)
    mass_before = kept.cumsum(dim=-1) - kept
    return kept.masked_fill((mass_before >= top_p[:, None]) & (rank > 0), 0)
