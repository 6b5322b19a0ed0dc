"""Copies from page to page."""

from torch import Tensor

from kvasir_workers.kv.manager import PageCopy


def copy_tokens(pages: Tensor, copy: PageCopy) -> None:
    """Write the first tokens of one page into another, in all layers of pages [L, 2, N, P, K, D].

    One copy at a time, since many at once would need memory for all of them in between.
    """
    pages[:, :, copy.target, : copy.num_tokens] = pages[:, :, copy.source, : copy.num_tokens]
