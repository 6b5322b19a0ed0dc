"""Pages copied by the C++ kernel, past the caches."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from kvasir_kernels.native.library import Kernel, KernelLibrary

_copy_pages = Kernel("copy_pages", "pppp" + 10 * "i")
_read_pages = Kernel("read_pages", "ppiiiiip")
_write_pages = Kernel("write_pages", "ppiiiiip")


def can_copy(source: Tensor, target: Tensor) -> bool:
    """A token's heads lie together, and layers at even distances."""
    return all(_is_even(pages) for pages in (source, target))


def copy_pages(
    library: KernelLibrary, source: Tensor, source_ids: Sequence[int], target: Tensor, target_ids: Sequence[int]
) -> None:
    """See reference.py; an id that is none is refused, since the kernel would write anywhere."""
    _check(source_ids, source)
    _check(target_ids, target)
    num_layers, two, _, page_size, num_heads, head_dim = source.shape
    ids = torch.tensor([source_ids, target_ids], dtype=torch.int64)
    addresses = (source.data_ptr(), target.data_ptr(), ids[0].data_ptr(), ids[1].data_ptr())
    sizes = (len(source_ids), num_layers * two, page_size, num_heads * head_dim * source.itemsize)
    _copy_pages(library, torch.uint8, *addresses, *sizes, *_distances(source), *_distances(target))


class PageContents:
    """What some pages hold, page after page, layer after layer in each, gone through once: read or written."""

    def __init__(self, library: KernelLibrary, pages: Tensor, page_ids: Sequence[int]) -> None:
        """pages: as for copy_pages, contiguous."""
        _check(page_ids, pages)
        num_layers, two, num_pages = pages.shape[:3]
        self._library = library
        self._pages = pages
        self._ids = torch.tensor(page_ids, dtype=torch.int64)
        self._num_pieces = num_layers * two
        self._distance = pages.nbytes // self._num_pieces
        self._piece_bytes = self._distance // num_pages
        self._first = 0
        self.num_bytes = len(page_ids) * self._num_pieces * self._piece_bytes

    def take(self, room: memoryview) -> memoryview:
        """Copy to room as much as fits of what comes next, and give it."""
        taken = room[: self.num_bytes]
        self._move(_read_pages, taken)
        return taken

    def fill(self, content: memoryview) -> None:
        """Write content to what comes next, past the caches. content: in memory that can be written, as all room is."""
        assert len(content) <= self.num_bytes, f"{len(content)} bytes for {self.num_bytes}"
        self._move(_write_pages, content)

    def _move(self, kernel: Kernel, buffer: memoryview) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        sizes = (self._num_pieces, self._piece_bytes, self._distance, self._first, len(buffer))
        kernel(self._library, torch.uint8, self._pages.data_ptr(), self._ids.data_ptr(), *sizes, address)
        self._first += len(buffer)
        self.num_bytes -= len(buffer)


def _check(ids: Sequence[int], pages: Tensor) -> None:
    num_pages = pages.shape[2]
    if any(not 0 <= page < num_pages for page in ids):
        raise IndexError(f"pages {list(ids)} of {num_pages}")


def _is_even(pages: Tensor) -> bool:
    num_layers, two, _, _, num_heads, head_dim = pages.shape
    layer, kind, _, _, head, number = pages.stride()
    return number == 1 and (head == head_dim or num_heads == 1) and (layer == two * kind or num_layers == 1)


def _distances(pages: Tensor) -> tuple[int, int, int]:
    """In bytes, from keys to values and on to the next layer, from page to page, from token to token."""
    _, kind, page, token, _, _ = pages.stride()
    return kind * pages.itemsize, page * pages.itemsize, token * pages.itemsize
