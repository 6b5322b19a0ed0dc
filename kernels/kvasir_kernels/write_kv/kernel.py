"""Scatter of keys and values into pages on a GPU: one program copies one token."""

import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.launch import power_of_two
from kvasir_kernels.paged_cache import LayerCache


def write_kv(key: Tensor, value: Tensor, slots: Tensor, cache: LayerCache) -> None:
    """See reference.py; heads may be strided, but a head's numbers lie side by side."""
    num_tokens, num_kv_heads, head_dim = key.shape
    if not num_tokens:
        return
    _scatter[(num_tokens,)](
        key, value, slots, cache.key, cache.value, key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, BLOCK=power_of_two(num_kv_heads * head_dim), num_warps=4,
    )  # fmt: skip


@triton.jit
def _scatter(
    key: tl.tensor,
    value: tl.tensor,
    slots: tl.tensor,
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    key_stride: tl.int64,
    key_head_stride: tl.int64,
    value_stride: tl.int64,
    value_head_stride: tl.int64,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Copy one token; nothing where its slot is -1."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    numbers = tl.arange(0, BLOCK)
    heads, columns = numbers // HEAD_DIM, numbers % HEAD_DIM
    is_real = (numbers < NUM_KV_HEADS * HEAD_DIM) & (slot >= 0)
    place = slot * (NUM_KV_HEADS * HEAD_DIM) + numbers
    new_key = tl.load(key + token * key_stride + heads * key_head_stride + columns, mask=is_real)
    new_value = tl.load(value + token * value_stride + heads * value_head_stride + columns, mask=is_real)
    tl.store(key_pages + place, new_key, mask=is_real)
    tl.store(value_pages + place, new_value, mask=is_real)
