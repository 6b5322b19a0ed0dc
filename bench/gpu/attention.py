"""Decode and prefill attention over pages, beside torch's over the same keys laid out side by side."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.gpu.bench import Bench
from bench.gpu.figures import OURS
from bench.gpu.sizes import Lengths
from kvasir_kernels.float8.reference import FLOAT8
from kvasir_kernels.paged_cache import AttentionBatch, CacheScales, LayerCache
from kvasir_kernels.tuning.clock import Work

_PAGE_SIZE = 16
_BACKENDS = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}


def measure_attention(bench: Bench) -> None:
    for case, lengths in bench.sizes.decodes.items():
        _measure_decode(bench, case, lengths)
    for case, lengths in bench.sizes.prefills.items():
        _measure_prefill(bench, case, lengths)


def _paged(bench: Bench, lengths: list[Lengths], stored: torch.dtype) -> tuple[LayerCache, AttentionBatch]:
    """Random pages in random order."""
    from kvasir_kernels.tuning.problems import scattered

    _, num_kv_heads, head_dim = bench.sizes.heads
    batch, num_pages = scattered(lengths, _PAGE_SIZE, bench.device)
    shape = (num_pages, _PAGE_SIZE, num_kv_heads, head_dim)
    scales = CacheScales(*torch.ones(2, num_kv_heads, device=bench.device)) if stored == FLOAT8 else None
    return LayerCache(*(bench.random(*shape).to(stored) for _ in "kv"), scales), batch


def _ours(bench: Bench, query: Tensor, lengths: list[Lengths], stored: torch.dtype) -> Work:
    from kvasir_kernels.paged_attention.kernel import paged_attention

    cache, batch = _paged(bench, lengths, stored)
    return partial(paged_attention, query, cache, batch, query.shape[-1] ** -0.5, None)


def _measure_decode(bench: Bench, case: str, lengths: list[Lengths]) -> None:
    num_heads, num_kv_heads, head_dim = bench.sizes.heads
    query = bench.random(len(lengths), num_heads, head_dim)
    num_numbers = 2 * num_kv_heads * head_dim * sum(context for _, context in lengths)
    ways = {OURS: _ours(bench, query, lengths, torch.bfloat16)}
    longest = max(context for _, context in lengths)
    if all(context == longest for _, context in lengths):
        keys, values = (bench.random(len(lengths), num_kv_heads, longest, head_dim) for _ in "kv")
        ways |= _torchs(bench, query.unsqueeze(2), keys, values, is_causal=False)
    bench.measure("decode attention", case, ways, num_bytes=2 * num_numbers)
    narrow = {OURS: _ours(bench, query, lengths, FLOAT8)}
    bench.measure("decode, FP8 cache", case, narrow, num_bytes=num_numbers)


def _measure_prefill(bench: Bench, case: str, lengths: list[Lengths]) -> None:
    num_heads, num_kv_heads, head_dim = bench.sizes.heads
    new, context = lengths[0]
    query = bench.random(new * len(lengths), num_heads, head_dim)
    ways = {OURS: _ours(bench, query, lengths, torch.bfloat16)}
    if new == context:
        keys, values = (bench.random(len(lengths), num_kv_heads, context, head_dim) for _ in "kv")
        queries = query.view(len(lengths), new, num_heads, head_dim).transpose(1, 2)
        ways |= _torchs(bench, queries, keys, values, is_causal=True)
    pairs = sum(count * length - count * (count - 1) / 2 for count, length in lengths)
    bench.measure("prefill attention", case, ways, num_operations=4 * pairs * num_heads * head_dim)


def _torchs(bench: Bench, query: Tensor, keys: Tensor, values: Tensor, *, is_causal: bool) -> dict[str, Work]:
    """query: [S, H, T, D], keys, values: [S, K, L, D]."""

    def scaled_dot_product(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, keys, values, is_causal=is_causal, enable_gqa=True)

    is_gpu = bench.device.type == "cuda"
    flex = torch.compile(flex_attention, dynamic=False) if is_gpu else flex_attention
    mask = None
    if is_causal:
        mask = create_block_mask(_causal, None, None, query.shape[2], keys.shape[2], device=bench.device.type)
    ways: dict[str, Work] = {name: partial(scaled_dot_product, backend) for name, backend in _BACKENDS.items()}
    return ways | {"flex_attention": partial(flex, query, keys, values, block_mask=mask, enable_gqa=True)}


def _causal(_sequence: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key
