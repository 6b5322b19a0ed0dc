"""Paged attention by the C++ kernel, which reads the pages where they lie."""

import torch
from torch import Tensor

from kvasir_kernels.native.library import Kernel, KernelLibrary
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache

_paged_attention = Kernel("paged_attention", "pipppippiiiiifip")

_LANES = 16

_NO_WINDOW = 2**40


def can_attend(query: Tensor, cache: LayerCache) -> bool:
    """Whether the kernel takes queries of this layout, and a cache of their dtype."""
    has_layout = query.shape[-1] % _LANES == 0 and query.stride()[1:] == (query.shape[-1], 1)
    return has_layout and cache.scales is None


def paged_attention(
    library: KernelLibrary, query: Tensor, cache: LayerCache, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """See reference.py."""
    num_heads, head_dim = query.shape[1:]
    _, page_size, num_kv_heads, _ = cache.key.shape
    out = torch.empty(query.shape, dtype=query.dtype)
    tables, lengths = batch.page_tables, batch.lengths
    num_sequences = len(batch.query_lens)
    _paged_attention(
        library, query.dtype, query.data_ptr(), query.stride(0), cache.key.data_ptr(), cache.value.data_ptr(),
        tables.data_ptr(), tables.stride(0), lengths.data_ptr(), lengths.data_ptr() + 8 * num_sequences, num_sequences,
        page_size, num_heads, num_kv_heads, head_dim, scale, window or _NO_WINDOW, out.data_ptr(),
    )  # fmt: skip
    return out
