"""Head norms, rotary embedding and the write of keys and values, one after the other in plain torch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvasir_kernels.paged_cache import LayerCache
from kvasir_kernels.rms_norm.reference import rms_norm
from kvasir_kernels.rotary.reference import apply_rotary
from kvasir_kernels.write_kv.reference import write_kv


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """What each query and each key is normalised with before it is turned. query, key: [D]."""

    query: Tensor
    key: Tensor
    eps: float


def rotate_and_write(
    heads: Tensor,
    norms: HeadNorms | None,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    cache: LayerCache,
    *,
    interleaved: bool = False,
) -> Tensor:
    """Return the turned queries, [T, H, D], which may lie in `heads`; store keys and values in the cache.

    heads: [T, H + 2K, D], contiguous: queries, keys and values; overwritten.
    cos, sin: [T, R / 2] float32, see rotary. slots: [T] int64, page * P + offset; -1 is padding and is skipped.
    """
    num_kv_heads = cache.key.shape[2]
    num_heads = heads.shape[1] - 2 * num_kv_heads
    query, key, value = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    if norms is not None:
        query, key = rms_norm(query, norms.query, norms.eps), rms_norm(key, norms.key, norms.eps)
    query, key = apply_rotary(query, key, cos, sin, interleaved=interleaved)
    write_kv(key, value, slots, cache)
    return query
