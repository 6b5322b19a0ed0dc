"""Scatter of keys and values into pages, in plain torch."""

from torch import Tensor

from kvasir_kernels.paged_cache import LayerCache


def write_kv(key: Tensor, value: Tensor, slots: Tensor, cache: LayerCache) -> None:
    """Store this step's keys and values in their slots of the cache, in place.

    key, value: [T, K, D]. slots: [T] int64, page * P + offset; -1 is padding and is skipped.
    Two tokens must not share a slot (not checked here). Idea: PagedAttention (Kwon et al., 2023).
    """
    is_real = slots >= 0
    real_slots = slots[is_real]
    for new, pages in ((key, cache.key), (value, cache.value)):
        pages.view(-1, *pages.shape[2:]).index_copy_(0, real_slots, new[is_real])
