"""Scatter of keys and values into pages, in plain torch."""

import torch
from torch import Tensor

from kvasir_kernels.float8.reference import SMALLEST_PEAK
from kvasir_kernels.paged_cache import LayerCache

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""What a cache of 8 bits can hold."""


def write_kv(key: Tensor, value: Tensor, slots: Tensor, cache: LayerCache) -> None:
    """Store this step's keys and values in their slots of the cache, in place.

    key, value: [T, K, D]. slots: [T] int64, page * P + offset; -1 is padding and is skipped.
    A cache of 8 bits gets them divided by their scales, rounded to even, and cut at its largest number.
    Two tokens must not share a slot (not checked here). Idea: PagedAttention (Kwon et al., 2023).
    """
    is_real = slots >= 0
    real_slots = slots[is_real]
    for new, pages, scale in zip((key, value), (cache.key, cache.value), cache.scale_tensors, strict=True):
        stored = new[is_real]
        if scale is not None:
            stored = _quantize(stored, pages.dtype, scale, real_slots).view(torch.uint8)
            pages = pages.view(torch.uint8)
        pages.view(-1, *pages.shape[2:]).index_copy_(0, real_slots, stored)


def _quantize(x: Tensor, dtype: torch.dtype, scale: Tensor, slots: Tensor) -> Tensor:
    """Of [T, K, D]; where each token has scales of its own they are found and stored here."""
    wide, largest = x.float(), LARGEST[dtype]
    if scale.dim() == 3:
        found = wide.abs().amax(-1).clamp(min=SMALLEST_PEAK) / largest
        scale.view(-1, scale.shape[2]).index_copy_(0, slots, found)
        scale = found
    scaled = (wide / scale.unsqueeze(-1)).clamp(-largest, largest)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
