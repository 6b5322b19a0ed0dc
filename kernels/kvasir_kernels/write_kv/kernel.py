"""Scatter of keys and values into pages on a GPU: one program copies some heads of one token."""

import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.float8.kernel import as_stored, narrowed, stored_as
from kvasir_kernels.launch import power_of_two
from kvasir_kernels.paged_cache import LayerCache

_NUMBERS_PER_PROGRAM = 2048

_SMALLEST_PEAK = tl.constexpr(1e-12)


def write_kv(key: Tensor, value: Tensor, slots: Tensor, cache: LayerCache) -> None:
    """See reference.py; heads may be strided, but a head's numbers lie side by side."""
    num_tokens, num_kv_heads, head_dim = key.shape
    block_dim = power_of_two(head_dim)
    block_heads = max(1, min(power_of_two(num_kv_heads), _NUMBERS_PER_PROGRAM // block_dim))
    _scatter[(num_tokens, triton.cdiv(num_kv_heads, block_heads))](
        key, value, slots, as_stored(cache.key), as_stored(cache.value), *cache.scale_tensors,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, BLOCK_HEADS=block_heads, BLOCK_DIM=block_dim,
        SCALED=cache.scaled_by, STORED=stored_as(cache.key.dtype), num_warps=4,
    )  # fmt: skip


@triton.jit
def _scatter(
    key: tl.tensor,
    value: tl.tensor,
    slots: tl.tensor,
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    key_stride: tl.int64,
    key_head_stride: tl.int64,
    value_stride: tl.int64,
    value_head_stride: tl.int64,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    SCALED: tl.constexpr,
    STORED: tl.constexpr,
) -> None:
    """Copy BLOCK_HEADS heads of one token; nothing where its slot is -1."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    columns = tl.arange(0, BLOCK_DIM)
    is_head = heads < NUM_KV_HEADS
    is_real = is_head[:, None] & (columns < HEAD_DIM)[None, :]
    place = (slot * NUM_KV_HEADS + heads)[:, None] * HEAD_DIM + columns[None, :]
    keys = key + token * key_stride + heads[:, None] * key_head_stride + columns[None, :]
    values = value + token * value_stride + heads[:, None] * value_head_stride + columns[None, :]
    new_key = tl.load(keys, mask=is_real, other=0.0).to(tl.float32)
    new_value = tl.load(values, mask=is_real, other=0.0).to(tl.float32)
    key_peaks, value_peaks = tl.max(tl.abs(new_key), 1), tl.max(tl.abs(new_value), 1)
    key_factor = factor_of_write(key_peaks, key_scales, slot, heads, is_head, NUM_KV_HEADS, SCALED, STORED)
    value_factor = factor_of_write(value_peaks, value_scales, slot, heads, is_head, NUM_KV_HEADS, SCALED, STORED)
    dtype = key_pages.dtype.element_ty
    tl.store(key_pages + place, narrowed(new_key * key_factor[:, None], dtype, STORED), mask=is_real)
    tl.store(value_pages + place, narrowed(new_value * value_factor[:, None], dtype, STORED), mask=is_real)


@triton.jit
def factor_of_write(
    peaks: tl.tensor,
    scales: tl.tensor,
    slot: tl.tensor,
    heads: tl.tensor,
    is_head: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    SCALED: tl.constexpr,
    STORED: tl.constexpr,
) -> tl.tensor:
    """Return what heads with these largest numbers are multiplied with, and store the scales that are found here."""
    if SCALED == "heads":
        factor = 1.0 / tl.load(scales + heads, mask=is_head, other=1.0)
    elif SCALED == "tokens":
        LARGEST: tl.constexpr = 127.0 if STORED == "int8" else 448.0
        peaks = tl.maximum(peaks, _SMALLEST_PEAK)
        tl.store(scales + slot * NUM_KV_HEADS + heads, peaks / LARGEST, mask=is_head)
        factor = LARGEST / peaks
    else:
        factor = tl.full(peaks.shape, 1.0, tl.float32)
    return factor
