"""Calls of the operations with the arguments that a model gives them: what they launch is to be compiled beforehand."""

import torch
from torch import Tensor

from kvasir_kernels.float8.kernel import quantize
from kvasir_kernels.float8.reference import BLOCK, FLOAT8, Grain, Quantized
from kvasir_kernels.float8_linear.kernel import float8_linear
from kvasir_kernels.mask_logits.kernel import mask_logits
from kvasir_kernels.move_pages.kernel import gather_pages, scatter_pages
from kvasir_kernels.move_pages.reference import PagePart
from kvasir_kernels.one_shot_all_reduce.kernel import one_shot_all_reduce
from kvasir_kernels.one_shot_all_reduce.reference import NUM_PROGRAMS, PeerMemory, peer_memory_bytes
from kvasir_kernels.paged_attention.kernel import paged_attention
from kvasir_kernels.paged_cache import AttentionBatch, CacheScales, LayerCache, PaddedDecodes, ScoreChanges
from kvasir_kernels.penalise.kernel import penalise
from kvasir_kernels.penalise.reference import SeenTable, SeenTokens
from kvasir_kernels.rms_norm.kernel import add_rms_norm, add_rms_norm_float8, rms_norm
from kvasir_kernels.rotate_and_write.kernel import rotate_and_write
from kvasir_kernels.rotate_and_write.reference import HeadNorms
from kvasir_kernels.sample_tokens.kernel import sample_tokens
from kvasir_kernels.sample_tokens.reference import SamplingRules
from kvasir_kernels.silu_mul.kernel import gelu_mul, gelu_mul_float8, silu_mul, silu_mul_float8
from kvasir_kernels.unpack_decodes.kernel import unpack_decodes
from kvasir_kernels.unpack_decodes.reference import DecodeInputs, packed_size
from kvasir_kernels.write_kv.kernel import write_kv

_NUM_TOKENS = 32
PAGE_SIZE = 16
HALF = torch.bfloat16


def norm(size: int, dtype: torch.dtype) -> None:
    x = torch.zeros(_NUM_TOKENS, size, dtype=dtype)
    add_rms_norm(x, x, torch.zeros(size, dtype=dtype), 1e-6)


def norm_float8(size: int, to: Grain | Tensor, dtype: torch.dtype = HALF) -> None:
    x = torch.zeros(_NUM_TOKENS, size, dtype=dtype)
    add_rms_norm_float8(x, x, torch.zeros(size, dtype=dtype), 1e-6, to)


def head_norm(num_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    heads = torch.zeros(_NUM_TOKENS, 2 * num_heads, head_dim, dtype=dtype)
    rms_norm(heads[:, :num_heads], torch.zeros(head_dim, dtype=dtype), 1e-6)


def gate(width: int, dtype: torch.dtype) -> None:
    silu_mul(torch.zeros(_NUM_TOKENS, 2 * width, dtype=dtype))


def gelu_gate(width: int) -> None:
    gelu_mul(torch.zeros(_NUM_TOKENS, 2 * width, dtype=HALF))


def gate_float8(width: int, to: Grain | Tensor, dtype: torch.dtype = HALF) -> None:
    silu_mul_float8(torch.zeros(_NUM_TOKENS, 2 * width, dtype=dtype), to)


def gelu_gate_float8(width: int, to: Grain | Tensor) -> None:
    gelu_mul_float8(torch.zeros(_NUM_TOKENS, 2 * width, dtype=HALF), to)


def quantize_rows(size: int, to: Grain | Tensor, dtype: torch.dtype = HALF) -> None:
    quantize(torch.zeros(_NUM_TOKENS, size, dtype=dtype), to)


def _cache(num_kv_heads: int, head_dim: int, dtype: torch.dtype, page_size: int = PAGE_SIZE) -> LayerCache:
    """In 8 bits float8 has a scale for each head, int8 one for each head of each token."""
    pages = torch.zeros(2, 8, page_size, num_kv_heads, head_dim, dtype=torch.uint8 if dtype.itemsize == 1 else dtype)
    if dtype.itemsize > 1:
        return LayerCache(pages[0], pages[1])
    shape = (num_kv_heads,) if dtype == FLOAT8 else pages.shape[1:4]
    key, value = pages.view(dtype).unbind()
    return LayerCache(key, value, CacheScales(torch.zeros(shape), torch.zeros(shape)))


def rotate(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    stored: torch.dtype | None = None,
    has_norms: bool = True,
    page_size: int = PAGE_SIZE,
) -> None:
    heads = torch.zeros(_NUM_TOKENS, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
    cos, sin = torch.zeros(_NUM_TOKENS, head_dim).chunk(2, dim=1)
    weight = torch.zeros(head_dim, dtype=dtype)
    norms = HeadNorms(weight, weight, 1e-6) if has_norms else None
    slots = torch.zeros(_NUM_TOKENS, dtype=torch.int64)
    rotate_and_write(heads, norms, cos, sin, slots, _cache(num_kv_heads, head_dim, stored or dtype, page_size))


def write(num_kv_heads: int, head_dim: int, stored: torch.dtype) -> None:
    key = torch.zeros(_NUM_TOKENS, num_kv_heads, head_dim, dtype=HALF)
    write_kv(key, key, torch.zeros(_NUM_TOKENS, dtype=torch.int64), _cache(num_kv_heads, head_dim, stored))


def attention(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int | None,
    dtype: torch.dtype,
    *,
    stored: torch.dtype | None = None,
    changes: ScoreChanges | None = None,
    page_size: int = PAGE_SIZE,
) -> None:
    """A long decode, which is split, and a chunk."""
    batch = AttentionBatch((1, 20), (2000, 40), torch.zeros(2, 128, dtype=torch.int64), num_decodes=1)
    query = torch.zeros(21, num_heads, head_dim, dtype=dtype)
    cache = _cache(num_kv_heads, head_dim, stored or dtype, page_size)
    paged_attention(query, cache, batch, head_dim**-0.5, window, changes)


def linear_of_one_scale(num_tokens: int, num_inputs: int, num_outputs: int) -> None:
    x, weight = (torch.zeros(rows, num_inputs, dtype=FLOAT8) for rows in (num_tokens, num_outputs))
    float8_linear(Quantized(x, torch.zeros(1)), Quantized(weight, torch.zeros(1)), None, HALF)


def linear_float8(
    num_tokens: int, grain: Grain, num_inputs: int = 4096, num_outputs: int = 6144, *, has_input_scale: bool = False
) -> None:
    blocks = 1 if grain is Grain.ROW else -(-num_inputs // BLOCK)
    scale = torch.zeros(1) if has_input_scale else torch.zeros(num_tokens, blocks)
    x = Quantized(torch.zeros(num_tokens, num_inputs, dtype=FLOAT8), scale)
    squares = (num_outputs, 1) if grain is Grain.ROW else (-(-num_outputs // BLOCK), blocks)
    weight = Quantized(torch.zeros(num_outputs, num_inputs, dtype=FLOAT8), torch.zeros(squares))
    float8_linear(x, weight, None, HALF)


def move(
    part: PagePart,
    num_kv_heads: int = 8,
    head_dim: int = 128,
    dtype: torch.dtype = HALF,
    *,
    page_size: int = PAGE_SIZE,
) -> None:
    num_layers = part.first_layer + part.num_layers
    pages = torch.zeros(num_layers, 2, 8, page_size, num_kv_heads, head_dim, dtype=dtype)
    page_ids = torch.zeros(3, dtype=torch.int64)
    scatter_pages(gather_pages(pages, page_ids, part), pages, page_ids, part)


def sample(vocabulary: int) -> None:
    logits = torch.zeros(_NUM_TOKENS, vocabulary)
    numbers, places = torch.zeros(_NUM_TOKENS), torch.zeros(_NUM_TOKENS, dtype=torch.int64)
    mask_logits(logits, (0, 1), torch.zeros(2, -(-vocabulary // 32), dtype=torch.int32))
    penalise(logits, SeenTokens(places, places, numbers, numbers, numbers, numbers))
    table = torch.zeros(2, vocabulary, dtype=torch.int32)
    penalise(logits, SeenTable(table, places, numbers, numbers, numbers))
    sample_tokens(logits, SamplingRules(places, places, numbers, places.int(), numbers, numbers))


def unpack(num_rows: int, num_pages: int, *, page_size: int = PAGE_SIZE) -> None:
    """The inputs of a graph: of as many rows and pages as the largest has."""
    inputs = DecodeInputs.empty(num_rows, num_pages, torch.device("cpu"))
    packed = torch.zeros(packed_size(num_rows, num_pages), dtype=torch.int32)
    unpack_decodes(packed, inputs.token_ids, num_rows, page_size, inputs)


def decodes(
    num_rows: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int | None,
    dtype: torch.dtype,
    *,
    stored: torch.dtype | None = None,
    page_size: int = PAGE_SIZE,
) -> None:
    """A graph's attention, whose cut the device finds."""
    batch = PaddedDecodes(torch.zeros(num_rows, dtype=torch.int32), torch.zeros(num_rows, 128, dtype=torch.int64))
    query = torch.zeros(num_rows, num_heads, head_dim, dtype=dtype)
    cache = _cache(num_kv_heads, head_dim, stored or dtype, page_size)
    paged_attention(query, cache, batch, head_dim**-0.5, window)


def all_reduce(num_ranks: int, size: int, dtype: torch.dtype) -> None:
    own = torch.zeros(peer_memory_bytes(num_ranks), dtype=torch.uint8)
    counts = torch.zeros(num_ranks + NUM_PROGRAMS, dtype=torch.int64)
    memory = PeerMemory(0, counts[:num_ranks], own, counts[num_ranks:])
    one_shot_all_reduce(torch.zeros(_NUM_TOKENS, size, dtype=dtype), memory)
