"""Pages copied by numpy: torch's own index_copy_ copies twice, in pieces of one head."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def copy_pages(source: Tensor, source_ids: Sequence[int], target: Tensor, target_ids: Sequence[int]) -> None:
    """Copy pages from one memory to another, in the order of the ids.

    source, target: [L, 2, N, P, K, D] on the host, of one dtype and one shape but for N; a number's neighbour on the
    last axis is its neighbour in memory. Ids lie in 0..N-1.
    """
    read, written = _bytes_of(source), _bytes_of(target)
    for first, target_first, length in runs_of(source_ids, target_ids):
        written[:, :, target_first : target_first + length] = read[:, :, first : first + length]


def _bytes_of(pages: Tensor) -> NDArray[np.uint8]:
    """The same memory as [..., D * bytes per number]."""
    return pages.view(torch.uint8).numpy()


def runs_of(source: Sequence[int], target: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first page of source, first page of target, number) for pages that follow each other in both."""
    start = 0
    for end in range(1, len(source) + 1):
        if end < len(source) and source[end] == source[end - 1] + 1 and target[end] == target[end - 1] + 1:
            continue
        yield source[start], target[start], end - start
        start = end
