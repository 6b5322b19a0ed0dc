"""Pages as bytes, and copies between page memories. pages: [L, 2, N, P, K, D] as in `page_memory.py`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import PageLayout


def layout_page_bytes(layout: PageLayout) -> int:
    """Bytes of one page."""
    num_values = layout.num_layers * 2 * layout.page_size * layout.num_kv_heads * layout.head_dim
    return num_values * layout_dtype(layout).itemsize


def layout_dtype(layout: PageLayout) -> torch.dtype:
    dtype = getattr(torch, layout.dtype, None)
    assert isinstance(dtype, torch.dtype), f"layout names dtype {layout.dtype!r}"
    return dtype


def pack_pages(pages: Tensor, indices: Sequence[PageIndex]) -> bytes:
    """The content of some pages, page after page."""
    chosen = pages.index_select(2, torch.tensor(indices, device=pages.device)).movedim(2, 0).contiguous()
    return bytes(chosen.cpu().view(-1).view(torch.uint8).numpy().data)


def unpack_pages(content: bytes, pages: Tensor, indices: Sequence[PageIndex]) -> None:
    """Write what pack_pages made into other pages; the caller has checked the size."""
    num_layers, two, _, page_size, num_kv_heads, head_dim = pages.shape
    flat = torch.frombuffer(bytearray(content), dtype=pages.dtype)
    chosen = flat.view(len(indices), num_layers, two, page_size, num_kv_heads, head_dim).movedim(0, 2)
    pages.index_copy_(2, torch.tensor(indices, device=pages.device), chosen.to(pages.device))


def copy_pages(
    source: Tensor, source_indices: Sequence[PageIndex], target: Tensor, indices: Sequence[PageIndex]
) -> None:
    """Copy pages between two memories of one layout."""
    chosen = source.index_select(2, torch.tensor(source_indices, device=source.device))
    target.index_copy_(2, torch.tensor(indices, device=target.device), chosen.to(target.device))
