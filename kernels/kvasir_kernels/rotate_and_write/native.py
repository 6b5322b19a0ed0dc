"""Head norms, rotary embedding and the write of keys and values in one pass of the C++ kernel."""

from torch import Tensor

from kvasir_kernels.native.library import Kernel, KernelLibrary
from kvasir_kernels.paged_cache import LayerCache
from kvasir_kernels.rotate_and_write.reference import HeadNorms

_rotate_and_write = Kernel("rotate_and_write", "pppfppipppiiii")

_LANES = 16


def can_rotate(heads: Tensor, cos: Tensor, cache: LayerCache) -> bool:
    """Whether the kernel takes heads of this size, all of whose numbers are turned, and a cache of their dtype."""
    head_dim = heads.shape[-1]
    return head_dim % _LANES == 0 and 2 * cos.shape[-1] == head_dim and cache.scales is None


def rotate_and_write(
    library: KernelLibrary,
    heads: Tensor,
    norms: HeadNorms | None,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    cache: LayerCache,
) -> Tensor:
    """See reference.py; the queries are turned where they lie."""
    num_tokens, num_projected, head_dim = heads.shape
    num_kv_heads = cache.key.shape[2]
    num_heads = num_projected - 2 * num_kv_heads
    query_norm, key_norm, eps = (None, None, 0.0)
    if norms is not None:
        query_norm, key_norm, eps = norms.query.data_ptr(), norms.key.data_ptr(), norms.eps
    _rotate_and_write(
        library, heads.dtype, heads.data_ptr(), query_norm, key_norm, eps,
        cos.data_ptr(), sin.data_ptr(), cos.stride(0), slots.data_ptr(), cache.key.data_ptr(), cache.value.data_ptr(),
        num_tokens, num_heads, num_kv_heads, head_dim,
    )  # fmt: skip
    return heads[:, :num_heads]
