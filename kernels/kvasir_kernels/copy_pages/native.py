"""Pages copied by the C++ kernel, past the caches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvasir_kernels.native.library import Kernel, KernelLibrary

_copy_pages = Kernel("copy_pages", "pppp" + 10 * "i")


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
