"""Pages as bytes, and copies between page memories.

pages: [L, 2, N, P, K, D] as in `page_memory.py`, or any layers and heads of it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_kernels import dispatch
from kvasir_kernels.copy_pages.reference import runs_of
from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import PageLayout
from kvasir_workers.kv.transfer.pieces import Contents, Pieces

_PAGE_AXIS = 2


def layout_page_bytes(layout: PageLayout) -> int:
    """Bytes of one page."""
    num_values = layout.num_layers * 2 * layout.page_size * layout.num_kv_heads * layout.head_dim
    return num_values * layout_dtype(layout).itemsize


def layout_dtype(layout: PageLayout) -> torch.dtype:
    dtype = getattr(torch, layout.dtype, None)
    assert isinstance(dtype, torch.dtype), f"layout names dtype {layout.dtype!r}"
    return dtype


def first_pages(number: int) -> list[PageIndex]:
    """The indices of so many pages that lie together."""
    return [PageIndex(index) for index in range(number)]


def page_bytes_of(pages: Tensor) -> int:
    """Bytes of one page of this memory."""
    return pages[:, :, :1].numel() * pages.itemsize


def pack_pages(pages: Tensor, indices: Sequence[PageIndex], room: bytearray | None = None) -> memoryview:
    """The content of some pages, page after page; in room, if it is given, which may be too large."""
    num_layers, two, _, page_size, num_heads, head_dim = pages.shape
    shape = (len(indices), num_layers, two, page_size, num_heads, head_dim * pages.itemsize)
    if pages.device.type == "cpu":
        # Page by page: index_select and a movedim after it copy twice, in pieces of one head (0.3 GB/s against 5).
        num_bytes = len(indices) * page_bytes_of(pages)
        packed = np.frombuffer(bytearray(num_bytes) if room is None else room, np.uint8, num_bytes).reshape(shape)
        source = _bytes_of(pages)
        for position, page in enumerate(indices):
            packed[position] = source[:, :, page]
    else:
        chosen = pages.view(torch.uint8).index_select(_PAGE_AXIS, torch.tensor(indices, device=pages.device))
        packed = chosen.movedim(_PAGE_AXIS, 0).contiguous().cpu().numpy()
    return packed.reshape(-1).data


def unpack_pages(content: bytes | memoryview, pages: Tensor, indices: Sequence[PageIndex]) -> None:
    """Write what pack_pages made into other pages; the caller has checked the size."""
    num_layers, two, _, page_size, num_heads, head_dim = pages.shape
    shape = (len(indices), num_layers, two, page_size, num_heads, head_dim * pages.itemsize)
    packed = np.frombuffer(content, np.uint8).reshape(shape)
    if pages.device.type == "cpu":
        target = _bytes_of(pages)
        for position, page in enumerate(indices):
            target[:, :, page] = packed[position]
    else:
        # As bytes: float8 can be moved in no other way.
        chosen = torch.from_numpy(packed.copy()).movedim(0, _PAGE_AXIS).to(pages.device)
        pages.view(torch.uint8).index_copy_(_PAGE_AXIS, torch.tensor(indices, device=pages.device), chosen)


def page_places(pages: Tensor, indices: Sequence[PageIndex]) -> list[memoryview]:
    """The memory of some pages, piece after piece in the order of pack_pages; empty if it can't be reached so."""
    if pages.device.type != "cpu" or not pages.is_contiguous():
        return []
    memory, num_pages = _bytes_of(pages).reshape(-1).data, pages.shape[_PAGE_AXIS]
    num_pieces = 2 * len(pages)
    size = len(memory) // (num_pieces * num_pages)
    starts = ((piece * num_pages + page) * size for page in indices for piece in range(num_pieces))
    return [memory[start : start + size] for start in starts]


def page_contents(pages: Tensor, indices: Sequence[PageIndex]) -> Contents | None:
    """What some pages hold, to be read or written in the order of pack_pages; None if they can't be reached so."""
    if not page_places(pages, indices[:1]):
        return None
    return dispatch.page_contents(pages, indices) or Pieces(page_places(pages, indices))


def copy_pages(
    source: Tensor, source_indices: Sequence[PageIndex], target: Tensor, indices: Sequence[PageIndex]
) -> None:
    """Copy pages between two memories of one shape but for the number of pages."""
    if source.device.type == target.device.type == "cpu":
        dispatch.copy_pages(source, source_indices, target, indices)
    else:
        for first, target_first, length in runs_of(source_indices, indices):
            target[:, :, target_first : target_first + length].copy_(source[:, :, first : first + length])


def _bytes_of(pages: Tensor) -> NDArray[np.uint8]:
    """The same memory as [..., D * bytes per value]."""
    return pages.view(torch.uint8).numpy()
