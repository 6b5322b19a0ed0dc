"""The shapes for which compile_check compiles the kernels: those of models that are served."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from kvasir_kernels.paged_attention.kernel import paged_attention
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_kernels.rms_norm.kernel import add_rms_norm, rms_norm
from kvasir_kernels.rotary.kernel import apply_rotary
from kvasir_kernels.silu_mul.kernel import silu_mul
from kvasir_kernels.write_kv.kernel import write_kv

Case = Callable[[], None]

KERNEL_MODULES = tuple(
    f"kvasir_kernels.{operation}.kernel"
    for operation in ("rms_norm", "silu_mul", "rotary", "write_kv", "paged_attention")
)

_NUM_TOKENS = 32
_PAGE_SIZE = 16


def _norm(size: int, dtype: torch.dtype) -> None:
    x = torch.zeros(_NUM_TOKENS, size, dtype=dtype)
    add_rms_norm(x, x, torch.zeros(size, dtype=dtype), 1e-6)


def _head_norm(num_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    heads = torch.zeros(_NUM_TOKENS, 2 * num_heads, head_dim, dtype=dtype)
    rms_norm(heads[:, :num_heads], torch.zeros(head_dim, dtype=dtype), 1e-6)


def _gate(width: int, dtype: torch.dtype) -> None:
    silu_mul(torch.zeros(_NUM_TOKENS, 2 * width, dtype=dtype))


def _cache(num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> LayerCache:
    return LayerCache(*torch.zeros(2, 8, _PAGE_SIZE, num_kv_heads, head_dim, dtype=dtype))


def _rotate_and_write(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    heads = torch.zeros(_NUM_TOKENS, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
    query, key, value = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    query, key = apply_rotary(query, key, *torch.zeros(2, _NUM_TOKENS, head_dim // 2))
    write_kv(key, value, torch.zeros(_NUM_TOKENS, dtype=torch.int64), _cache(num_kv_heads, head_dim, dtype))


def _attention(num_heads: int, num_kv_heads: int, head_dim: int, window: int | None, dtype: torch.dtype) -> None:
    """A long decode, which is split, and a chunk."""
    batch = AttentionBatch((1, 20), (2000, 40), torch.zeros(2, 128, dtype=torch.int64), num_decodes=1)
    query = torch.zeros(21, num_heads, head_dim, dtype=dtype)
    paged_attention(query, _cache(num_kv_heads, head_dim, dtype), batch, head_dim**-0.5, window)


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        for size in (4096, 16384):
            cases[f"add_rms_norm {size} {name}"] = partial(_norm, size, dtype)
        cases[f"rms_norm of heads of 128 {name}"] = partial(_head_norm, 16, 128, dtype)
        cases[f"silu_mul 14336 {name}"] = partial(_gate, 14336, dtype)
        for layout in ((32, 8, 64), (32, 8, 128), (16, 8, 256)):
            cases[f"rotary, write_kv {_named(*layout)} {name}"] = partial(_rotate_and_write, *layout, dtype)
        for layout in ((14, 2, 64), (32, 8, 128), (16, 8, 256)):
            cases[f"attention {_named(*layout)} {name}"] = partial(_attention, *layout, None, dtype)
    for layout in ((32, 8, 64), (32, 32, 96)):
        cases[f"attention {_named(*layout)} bfloat16"] = partial(_attention, *layout, None, torch.bfloat16)
    cases[f"attention {_named(32, 8, 128)} window bfloat16"] = partial(_attention, 32, 8, 128, 4096, torch.bfloat16)
    cases[f"attention {_named(32, 8, 128)} float16"] = partial(_attention, 32, 8, 128, None, torch.float16)
    return cases


def _named(num_heads: int, num_kv_heads: int, head_dim: int) -> str:
    return f"{num_heads}/{num_kv_heads}x{head_dim}"


CASES: Mapping[str, Case] = _cases()
