"""The shapes for which compile_check compiles the kernels: those of models that are served."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from kvasir_kernels.float8.kernel import quantize
from kvasir_kernels.float8.reference import FLOAT8, Grain, Quantized
from kvasir_kernels.float8_linear.kernel import float8_linear
from kvasir_kernels.mask_logits.kernel import mask_logits
from kvasir_kernels.move_pages.kernel import gather_pages, scatter_pages
from kvasir_kernels.move_pages.reference import PagePart
from kvasir_kernels.paged_attention.kernel import paged_attention
from kvasir_kernels.paged_cache import AttentionBatch, CacheScales, LayerCache, PaddedDecodes, ScoreChanges
from kvasir_kernels.penalise.kernel import penalise
from kvasir_kernels.penalise.reference import SeenTable, SeenTokens
from kvasir_kernels.rms_norm.kernel import add_rms_norm, add_rms_norm_float8, rms_norm
from kvasir_kernels.rotate_and_write.kernel import rotate_and_write
from kvasir_kernels.rotate_and_write.reference import HeadNorms
from kvasir_kernels.sample_tokens.kernel import sample_tokens
from kvasir_kernels.sample_tokens.reference import SamplingRules
from kvasir_kernels.silu_mul.kernel import gelu_mul, silu_mul, silu_mul_float8
from kvasir_kernels.unpack_decodes.kernel import unpack_decodes
from kvasir_kernels.unpack_decodes.reference import DecodeInputs, packed_size
from kvasir_kernels.write_kv.kernel import write_kv

Case = Callable[[], None]

KERNEL_MODULES = tuple(
    f"kvasir_kernels.{module}"
    for module in (
        "rms_norm.kernel", "silu_mul.kernel", "float8.kernel", "rotate_and_write.kernel", "write_kv.kernel",
        "paged_attention.decode_kernel", "paged_attention.extend_kernel", "float8_linear.kernel", "move_pages.kernel",
        "mask_logits.kernel", "penalise.kernel", "sample_tokens.kernel", "unpack_decodes.kernel", "cut_decodes.kernel",
    )
)  # fmt: skip

_NUM_TOKENS = 32
_PAGE_SIZE = 16
_VOCABULARY = 128256
_HALF = torch.bfloat16


def _norm(size: int, dtype: torch.dtype) -> None:
    x = torch.zeros(_NUM_TOKENS, size, dtype=dtype)
    add_rms_norm(x, x, torch.zeros(size, dtype=dtype), 1e-6)


def _norm_float8(size: int, to: Grain) -> None:
    x = torch.zeros(_NUM_TOKENS, size, dtype=_HALF)
    add_rms_norm_float8(x, x, torch.zeros(size, dtype=_HALF), 1e-6, to)


def _head_norm(num_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    heads = torch.zeros(_NUM_TOKENS, 2 * num_heads, head_dim, dtype=dtype)
    rms_norm(heads[:, :num_heads], torch.zeros(head_dim, dtype=dtype), 1e-6)


def _gate(width: int, dtype: torch.dtype) -> None:
    silu_mul(torch.zeros(_NUM_TOKENS, 2 * width, dtype=dtype))


def _gelu_gate(width: int) -> None:
    gelu_mul(torch.zeros(_NUM_TOKENS, 2 * width, dtype=_HALF))


def _gate_float8(width: int, to: Grain) -> None:
    silu_mul_float8(torch.zeros(_NUM_TOKENS, 2 * width, dtype=_HALF), to)


def _quantize(size: int, to: Grain) -> None:
    quantize(torch.zeros(_NUM_TOKENS, size, dtype=_HALF), to)


def _cache(num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> LayerCache:
    """In 8 bits float8 has a scale for each head, int8 one for each head of each token."""
    pages = torch.zeros(2, 8, _PAGE_SIZE, num_kv_heads, head_dim, dtype=torch.uint8 if dtype.itemsize == 1 else dtype)
    if dtype.itemsize > 1:
        return LayerCache(pages[0], pages[1])
    shape = (num_kv_heads,) if dtype == FLOAT8 else pages.shape[1:4]
    key, value = pages.view(dtype).unbind()
    return LayerCache(key, value, CacheScales(torch.zeros(shape), torch.zeros(shape)))


def _rotate_and_write(
    num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, *, stored: torch.dtype | None = None
) -> None:
    heads = torch.zeros(_NUM_TOKENS, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
    angles, weight = torch.zeros(_NUM_TOKENS, head_dim // 2), torch.zeros(head_dim, dtype=dtype)
    slots = torch.zeros(_NUM_TOKENS, dtype=torch.int64)
    rotate_and_write(
        heads, HeadNorms(weight, weight, 1e-6), angles, angles, slots, _cache(num_kv_heads, head_dim, stored or dtype)
    )


def _write(num_kv_heads: int, head_dim: int, stored: torch.dtype) -> None:
    key = torch.zeros(_NUM_TOKENS, num_kv_heads, head_dim, dtype=_HALF)
    write_kv(key, key, torch.zeros(_NUM_TOKENS, dtype=torch.int64), _cache(num_kv_heads, head_dim, stored))


def _attention(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int | None,
    dtype: torch.dtype,
    *,
    stored: torch.dtype | None = None,
    changes: ScoreChanges | None = None,
) -> None:
    """A long decode, which is split, and a chunk."""
    batch = AttentionBatch((1, 20), (2000, 40), torch.zeros(2, 128, dtype=torch.int64), num_decodes=1)
    query = torch.zeros(21, num_heads, head_dim, dtype=dtype)
    cache = _cache(num_kv_heads, head_dim, stored or dtype)
    paged_attention(query, cache, batch, head_dim**-0.5, window, changes)


def _float8_linear(num_tokens: int, grain: Grain) -> None:
    num_inputs, num_outputs = 4096, 6144
    blocks = 1 if grain is Grain.ROW else num_inputs // 128
    x = Quantized(torch.zeros(num_tokens, num_inputs, dtype=FLOAT8), torch.zeros(num_tokens, blocks))
    squares = (num_outputs, 1) if grain is Grain.ROW else (num_outputs // 128, blocks)
    weight = Quantized(torch.zeros(num_outputs, num_inputs, dtype=FLOAT8), torch.zeros(squares))
    float8_linear(x, weight, None, _HALF)


def _move() -> None:
    pages, page_ids = torch.zeros(2, 2, 8, _PAGE_SIZE, 8, 128, dtype=_HALF), torch.zeros(3, dtype=torch.int64)
    part = PagePart(0, 2, 4, 4)
    scatter_pages(gather_pages(pages, page_ids, part), pages, page_ids, part)


def _sample() -> None:
    logits = torch.zeros(_NUM_TOKENS, _VOCABULARY)
    numbers, places = torch.zeros(_NUM_TOKENS), torch.zeros(_NUM_TOKENS, dtype=torch.int64)
    mask_logits(logits, (0, 1), torch.zeros(2, _VOCABULARY // 32, dtype=torch.int32))
    penalise(logits, SeenTokens(places, places, numbers, numbers, numbers, numbers))
    table = torch.zeros(2, _VOCABULARY, dtype=torch.int32)
    penalise(logits, SeenTable(table, places, numbers, numbers, numbers))
    sample_tokens(logits, SamplingRules(places, places, numbers, places.int(), numbers, numbers))


def _decodes(num_rows: int) -> None:
    """What a graph replays beside the model's layers."""
    num_heads, num_kv_heads, head_dim = 32, 8, 128
    inputs = DecodeInputs.empty(num_rows, 8192, torch.device("cpu"))
    packed = torch.zeros(packed_size(num_rows, 8192), dtype=torch.int32)
    unpack_decodes(packed, inputs.token_ids, num_rows, _PAGE_SIZE, inputs)
    batch = PaddedDecodes(inputs.context_lens, inputs.page_tables)
    query = torch.zeros(num_rows, num_heads, head_dim, dtype=_HALF)
    paged_attention(query, _cache(num_kv_heads, head_dim, _HALF), batch, head_dim**-0.5, None)


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        for size in (4096, 16384):
            cases[f"add_rms_norm {size} {name}"] = partial(_norm, size, dtype)
        cases[f"rms_norm of heads of 128 {name}"] = partial(_head_norm, 16, 128, dtype)
        cases[f"silu_mul 14336 {name}"] = partial(_gate, 14336, dtype)
        for layout in ((32, 8, 64), (32, 8, 128), (16, 8, 256)):
            cases[f"rotate_and_write {_named(*layout)} {name}"] = partial(_rotate_and_write, *layout, dtype)
        for layout in ((14, 2, 64), (32, 8, 128), (16, 8, 256)):
            cases[f"attention {_named(*layout)} {name}"] = partial(_attention, *layout, None, dtype)
    for layout in ((32, 8, 64), (32, 32, 96), (71, 1, 64)):
        cases[f"attention {_named(*layout)} bfloat16"] = partial(_attention, *layout, None, _HALF)
    llama = (32, 8, 128)
    cases[f"attention {_named(*llama)} window bfloat16"] = partial(_attention, *llama, 4096, _HALF)
    cases[f"attention {_named(*llama)} float16"] = partial(_attention, *llama, None, torch.float16)
    changes = ScoreChanges(50.0, torch.zeros(32))
    cases[f"attention {_named(*llama)} soft cap, sinks"] = partial(_attention, *llama, None, _HALF, changes=changes)
    for stored, narrow in ((FLOAT8, "float8"), (torch.int8, "int8")):
        for layout in (llama, (16, 8, 256)):
            cases[f"attention {_named(*layout)} {narrow}"] = partial(_attention, *layout, None, _HALF, stored=stored)
        cases[f"rotate_and_write {_named(*llama)} {narrow}"] = partial(_rotate_and_write, *llama, _HALF, stored=stored)
        cases[f"write_kv 8x128 {narrow}"] = partial(_write, 8, 128, stored)
    for grain in Grain:
        cases[f"add_rms_norm_float8 4096 {grain.value}"] = partial(_norm_float8, 4096, grain)
        cases[f"silu_mul_float8 14336 {grain.value}"] = partial(_gate_float8, 14336, grain)
        cases[f"quantize 4096 {grain.value}"] = partial(_quantize, 4096, grain)
        for num_tokens in (1, 64, 512):
            cases[f"float8_linear {num_tokens} {grain.value}"] = partial(_float8_linear, num_tokens, grain)
    cases["write_kv 8x128 bfloat16"] = partial(_write, 8, 128, _HALF)
    cases["gelu_mul 14336 bfloat16"] = partial(_gelu_gate, 14336)
    cases["move_pages 4 of 8x128"] = _move
    cases[f"sample of {_VOCABULARY}"] = _sample
    cases["256 decodes of a graph"] = partial(_decodes, 256)
    return cases


def _named(num_heads: int, num_kv_heads: int, head_dim: int) -> str:
    return f"{num_heads}/{num_kv_heads}x{head_dim}"


CASES: Mapping[str, Case] = _cases()
