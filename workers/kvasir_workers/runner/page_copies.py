"""Copies from page to page."""

from collections.abc import Sequence

from torch import Tensor

from kvasir_kernels.paged_cache import CacheScales
from kvasir_workers.kv.manager import PageCopy


def copy_tokens(pages: Tensor, copy: PageCopy, scales: Sequence[CacheScales]) -> None:
    """Write the first tokens of one page into another, in all layers of pages [L, 2, N, P, K, D].

    scales: of each layer; those of heads [K] are every page's, those of tokens [N, P, K] are copied, too.
    One copy at a time, since many at once would need memory for all of them in between.
    """
    pages[:, :, copy.target, : copy.num_tokens] = pages[:, :, copy.source, : copy.num_tokens]
    for scale in (tensor for layer in scales for tensor in (layer.key, layer.value) if tensor.dim() > 1):
        scale[copy.target, : copy.num_tokens] = scale[copy.source, : copy.num_tokens]
