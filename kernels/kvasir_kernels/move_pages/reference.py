"""Parts of pages in plain torch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagePart:
    """Some layers and some key heads of pages: what a rank of another layout holds. All counts are at least 1."""

    first_layer: int
    num_layers: int
    first_head: int
    num_heads: int


def gather_pages(pages: Tensor, page_ids: Tensor, part: PagePart) -> Tensor:
    """Return a part of some pages, page after page, ready to be sent: [n, num_layers, 2, P, num_heads, D].

    pages: [L, 2, N, P, K, D], contiguous. page_ids: [n] int64.
    """
    return _part(pages, part).index_select(2, page_ids).movedim(2, 0).contiguous()


def scatter_pages(content: Tensor, pages: Tensor, page_ids: Tensor, part: PagePart) -> None:
    """Write what gather_pages returned into a part of some pages, which may be another one of the same size."""
    # As bytes: float8 can be moved in no other way.
    _part(pages, part).view(torch.uint8).index_copy_(2, page_ids, content.view(torch.uint8).movedim(0, 2))


def _part(pages: Tensor, part: PagePart) -> Tensor:
    layers = slice(part.first_layer, part.first_layer + part.num_layers)
    return pages[layers, ..., part.first_head : part.first_head + part.num_heads, :]


def empty_content(pages: Tensor, num_pages: int, part: PagePart) -> Tensor:
    """Room for what gather_pages returns."""
    page_size, head_dim = pages.shape[3], pages.shape[5]
    shape = (num_pages, part.num_layers, 2, page_size, part.num_heads, head_dim)
    return torch.empty(shape, dtype=pages.dtype, device=pages.device)
