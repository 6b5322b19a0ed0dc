"""Head norms, rotary embedding and the write of keys and values on a GPU, one kernel after the other."""

import torch
from torch import Tensor

from kvasir_kernels.paged_cache import LayerCache
from kvasir_kernels.rms_norm.kernel import rms_norm
from kvasir_kernels.rotary.kernel import apply_rotary
from kvasir_kernels.rotate_and_write.reference import HeadNorms
from kvasir_kernels.write_kv.kernel import write_kv


def rotate_and_write(
    heads: Tensor, norms: HeadNorms | None, cos: Tensor, sin: Tensor, slots: Tensor, cache: LayerCache
) -> Tensor:
    """See reference.py; `heads` are left as they are."""
    num_kv_heads = cache.key.shape[2]
    num_heads = heads.shape[1] - 2 * num_kv_heads
    query, key, value = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    if norms is not None:
        query, key = rms_norm(query, norms.query, norms.eps), rms_norm(key, norms.key, norms.eps)
    query, key = apply_rotary(query, key, cos, sin)
    write_kv(key, value, slots, cache)
    return query
