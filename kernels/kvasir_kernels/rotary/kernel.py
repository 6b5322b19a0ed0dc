"""Rotary embedding on a GPU (RoFormer, Su et al., 2021), queries and keys in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.launch import power_of_two

_NUMBERS_PER_PROGRAM = 1024
"""Of one half of the heads: 16 bytes for each of 128 threads in half precision, and as many of the other half."""


def apply_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.py; heads may be strided, but a head's numbers lie side by side. Results are contiguous."""
    num_tokens, num_heads, head_dim = query.shape
    turned_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    turned_key = torch.empty(key.shape, dtype=key.dtype, device=key.device)
    block_half = power_of_two(head_dim // 2)
    block_heads = max(1, min(power_of_two(num_heads), _NUMBERS_PER_PROGRAM // block_half))
    num_query_tiles = triton.cdiv(num_heads, block_heads)
    num_tiles = num_query_tiles + triton.cdiv(key.shape[1], block_heads)
    _rotate_all[(num_tokens, num_tiles)](
        query, key, cos, sin, turned_query, turned_key,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), cos.stride(0),
        NUM_HEADS=num_heads, NUM_KV_HEADS=key.shape[1], HALF=head_dim // 2,
        BLOCK_HEADS=block_heads, BLOCK_HALF=block_half, num_warps=4,
    )  # fmt: skip
    return turned_query, turned_key


@triton.jit
def _rotate_all(
    query: tl.tensor,
    key: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    turned_query: tl.tensor,
    turned_key: tl.tensor,
    query_stride: tl.int64,
    query_head_stride: tl.int64,
    key_stride: tl.int64,
    key_head_stride: tl.int64,
    angle_stride: tl.int64,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """Turn BLOCK_HEADS heads of one token; the first tiles are the queries', the rest the keys'."""
    NUM_QUERY_TILES: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    pairs = tl.arange(0, BLOCK_HALF)
    cos_row = tl.load(cos + token * angle_stride + pairs, mask=pairs < HALF, other=0.0)[None, :]
    sin_row = tl.load(sin + token * angle_stride + pairs, mask=pairs < HALF, other=0.0)[None, :]
    if tile < NUM_QUERY_TILES:
        heads = tile * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        source, target = query + token * query_stride, turned_query + token * (NUM_HEADS * 2 * HALF)
        _rotate(source, target, heads, query_head_stride, cos_row, sin_row, NUM_HEADS, HALF, BLOCK_HALF)
    else:
        heads = (tile - NUM_QUERY_TILES) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        source, target = key + token * key_stride, turned_key + token * (NUM_KV_HEADS * 2 * HALF)
        _rotate(source, target, heads, key_head_stride, cos_row, sin_row, NUM_KV_HEADS, HALF, BLOCK_HALF)


@triton.jit
def _rotate(
    source: tl.tensor,
    target: tl.tensor,
    heads: tl.tensor,
    head_stride: tl.int64,
    cos_row: tl.tensor,
    sin_row: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    pairs = tl.arange(0, BLOCK_HALF)
    is_real = (heads < NUM_HEADS)[:, None] & (pairs < HALF)[None, :]
    read = source + heads[:, None] * head_stride + pairs[None, :]
    write = target + heads[:, None] * (2 * HALF) + pairs[None, :]
    first = tl.load(read, mask=is_real, other=0.0).to(tl.float32)
    second = tl.load(read + HALF, mask=is_real, other=0.0).to(tl.float32)
    tl.store(write, (first * cos_row - second * sin_row).to(target.dtype.element_ty), mask=is_real)
    tl.store(write + HALF, (second * cos_row + first * sin_row).to(target.dtype.element_ty), mask=is_real)
