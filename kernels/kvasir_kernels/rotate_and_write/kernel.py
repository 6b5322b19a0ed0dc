"""Head norms, rotary embedding and the write of keys and values on a GPU, in one launch (RoFormer, Su et al., 2021).

A program has some heads of one token: the first tiles are its queries', which stay where they lie, then come its keys',
then its values'. A head's numbers are the first and the second of each pair that is turned, and the rest. Rounded where
the reference rounds.
"""

import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.float8.kernel import as_stored, narrowed, stored_as
from kvasir_kernels.launch import power_of_two
from kvasir_kernels.paged_cache import LayerCache
from kvasir_kernels.rotate_and_write.reference import HeadNorms
from kvasir_kernels.write_kv.kernel import factor_of_write

_NUMBERS_PER_PROGRAM = 2048
"""16 bytes for each of 128 threads in half precision, twice."""


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
    """See reference.py; the queries are turned where they lie."""
    num_tokens, num_projected, head_dim = heads.shape
    num_kv_heads = cache.key.shape[2]
    num_heads, num_pairs = num_projected - 2 * num_kv_heads, cos.shape[1]
    block_heads = max(1, min(power_of_two(num_heads), _NUMBERS_PER_PROGRAM // power_of_two(head_dim)))
    num_tiles = triton.cdiv(num_heads, block_heads) + 2 * triton.cdiv(num_kv_heads, block_heads)
    query_norm, key_norm, eps = (None, None, 0.0) if norms is None else (norms.query, norms.key, norms.eps)
    _rotate_and_write[(num_tokens, num_tiles)](
        heads, query_norm, key_norm, eps, cos, sin, slots, as_stored(cache.key), as_stored(cache.value),
        *cache.scale_tensors, heads.stride(0), cos.stride(0),
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, NUM_PAIRS=num_pairs,
        INTERLEAVED=interleaved, SCALED=cache.scaled_by, STORED=stored_as(cache.key.dtype), BLOCK_HEADS=block_heads,
        BLOCK_PAIRS=power_of_two(num_pairs), BLOCK_REST=power_of_two(max(1, head_dim - 2 * num_pairs)), num_warps=4,
    )  # fmt: skip
    return heads[:, :num_heads]


@triton.jit
def _rotate_and_write(
    heads: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    eps: tl.float32,
    cos: tl.tensor,
    sin: tl.tensor,
    slots: tl.tensor,
    key_pages: tl.tensor,
    value_pages: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    token_stride: tl.int64,
    angle_stride: tl.int64,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    SCALED: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_REST: tl.constexpr,
) -> None:
    QUERY_TILES: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    KEY_TILES: tl.constexpr = (NUM_KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pairs, members = tl.arange(0, BLOCK_PAIRS), tl.arange(0, BLOCK_HEADS)
    firsts = pairs * (2 if INTERLEAVED else 1)
    seconds = firsts + (1 if INTERLEAVED else NUM_PAIRS)
    rests, angles = 2 * NUM_PAIRS + tl.arange(0, BLOCK_REST), token * angle_stride + pairs
    is_pair, is_rest = pairs < NUM_PAIRS, rests < HEAD_DIM
    is_query, is_value = tile < QUERY_TILES, tile >= QUERY_TILES + KEY_TILES
    members += (tile - tl.where(is_query, 0, QUERY_TILES + tl.where(is_value, KEY_TILES, 0))) * BLOCK_HEADS
    is_head = members < tl.where(is_query, NUM_HEADS, NUM_KV_HEADS)
    place = members + tl.where(is_query, 0, NUM_HEADS + tl.where(is_value, NUM_KV_HEADS, 0))
    places = heads + token * token_stride + place[:, None] * HEAD_DIM
    first, second, rest = _load(places, is_head, firsts, seconds, rests, is_pair, is_rest)
    if is_query:
        first, second, rest = _turned(
            first, second, rest, query_norm, eps, cos + angles, sin + angles, firsts, seconds, rests, is_pair, is_rest,
            heads.dtype.element_ty, HEAD_DIM,
        )  # fmt: skip
        _store(places, first, second, rest, is_head, firsts, seconds, rests, is_pair, is_rest, "wide")
    elif is_value:
        _write(
            first, second, rest, value_pages, value_scales, slots + token, members, is_head, firsts, seconds, rests,
            is_pair, is_rest, NUM_KV_HEADS, HEAD_DIM, SCALED, STORED,
        )  # fmt: skip
    else:
        first, second, rest = _turned(
            first, second, rest, key_norm, eps, cos + angles, sin + angles, firsts, seconds, rests, is_pair, is_rest,
            heads.dtype.element_ty, HEAD_DIM,
        )  # fmt: skip
        _write(
            first, second, rest, key_pages, key_scales, slots + token, members, is_head, firsts, seconds, rests,
            is_pair, is_rest, NUM_KV_HEADS, HEAD_DIM, SCALED, STORED,
        )  # fmt: skip


@triton.jit
def _turned(
    first: tl.tensor,
    second: tl.tensor,
    rest: tl.tensor,
    norm: tl.tensor,
    eps: tl.float32,
    cos: tl.tensor,
    sin: tl.tensor,
    firsts: tl.tensor,
    seconds: tl.tensor,
    rests: tl.tensor,
    is_pair: tl.tensor,
    is_rest: tl.tensor,
    dtype: tl.constexpr,
    HEAD_DIM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return queries or keys, normalised if there is a norm, and turned."""
    if norm is not None:
        squares = tl.sum(first * first + second * second, 1) + tl.sum(rest * rest, 1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        first = _weighted(first * scale, norm + firsts, is_pair, dtype)
        second = _weighted(second * scale, norm + seconds, is_pair, dtype)
        rest = _weighted(rest * scale, norm + rests, is_rest, dtype)
    cosines = tl.load(cos, mask=is_pair, other=0.0)[None, :]
    sines = tl.load(sin, mask=is_pair, other=0.0)[None, :]
    turned_first, turned_second = first * cosines - second * sines, second * cosines + first * sines
    return _rounded(turned_first, dtype), _rounded(turned_second, dtype), rest


@triton.jit
def _load(
    places: tl.tensor,
    is_head: tl.tensor,
    firsts: tl.tensor,
    seconds: tl.tensor,
    rests: tl.tensor,
    is_pair: tl.tensor,
    is_rest: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the numbers of the heads at `places` [BLOCK_HEADS, 1], in float32."""
    in_pairs, in_rest = is_head[:, None] & is_pair[None, :], is_head[:, None] & is_rest[None, :]
    first = tl.load(places + firsts[None, :], mask=in_pairs, other=0.0).to(tl.float32)
    second = tl.load(places + seconds[None, :], mask=in_pairs, other=0.0).to(tl.float32)
    rest = tl.load(places + rests[None, :], mask=in_rest, other=0.0).to(tl.float32)
    return first, second, rest


@triton.jit
def _store(
    places: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    rest: tl.tensor,
    is_head: tl.tensor,
    firsts: tl.tensor,
    seconds: tl.tensor,
    rests: tl.tensor,
    is_pair: tl.tensor,
    is_rest: tl.tensor,
    STORED: tl.constexpr,
) -> None:
    in_pairs, in_rest = is_head[:, None] & is_pair[None, :], is_head[:, None] & is_rest[None, :]
    dtype = places.dtype.element_ty
    tl.store(places + firsts[None, :], narrowed(first, dtype, STORED), mask=in_pairs)
    tl.store(places + seconds[None, :], narrowed(second, dtype, STORED), mask=in_pairs)
    tl.store(places + rests[None, :], narrowed(rest, dtype, STORED), mask=in_rest)


@triton.jit
def _write(
    first: tl.tensor,
    second: tl.tensor,
    rest: tl.tensor,
    pages: tl.tensor,
    scales: tl.tensor,
    slots: tl.tensor,
    members: tl.tensor,
    is_head: tl.tensor,
    firsts: tl.tensor,
    seconds: tl.tensor,
    rests: tl.tensor,
    is_pair: tl.tensor,
    is_rest: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALED: tl.constexpr,
    STORED: tl.constexpr,
) -> None:
    """Store heads in a slot of the cache, if there is one, with their scales where those are found here."""
    slot = tl.load(slots)
    is_head = is_head & (slot >= 0)
    peaks = tl.maximum(tl.max(tl.maximum(tl.abs(first), tl.abs(second)), 1), tl.max(tl.abs(rest), 1))
    factor = factor_of_write(peaks, scales, slot, members, is_head, NUM_KV_HEADS, SCALED, STORED)[:, None]
    places = pages + (slot * NUM_KV_HEADS + members)[:, None] * HEAD_DIM
    _store(
        places,
        first * factor,
        second * factor,
        rest * factor,
        is_head,
        firsts,
        seconds,
        rests,
        is_pair,
        is_rest,
        STORED,
    )


@triton.jit
def _weighted(normed: tl.tensor, weight: tl.tensor, is_real: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    weights = tl.load(weight, mask=is_real, other=0.0).to(tl.float32)
    return _rounded(weights[None, :] * _rounded(normed, dtype), dtype)


@triton.jit
def _rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    return x.to(dtype).to(tl.float32)
