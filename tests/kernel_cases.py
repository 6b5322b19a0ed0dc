"""Every Triton kernel against its reference, as cases that run on a GPU or, in Triton's interpreter, on the CPU.

As a program it runs all of them in the interpreter and prints one JSON object: what went wrong in which, or null.
Memory that a kernel has to fill is NaN before, and so are all pages outside of a context.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from kvasir_kernels.paged_attention.reference import paged_attention as reference_attention
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_kernels.rms_norm import reference as reference_norm
from kvasir_kernels.rotary import reference as reference_rotary
from kvasir_kernels.rotate_and_write import reference as reference_rotation
from kvasir_kernels.rotate_and_write.reference import HeadNorms
from kvasir_kernels.silu_mul import reference as reference_gate
from kvasir_kernels.write_kv import reference as reference_write

Case = Callable[[torch.device], None]

# One sequence of a step: new tokens, and tokens visible at its end.
Lengths = tuple[int, int]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Relative, for operations that round twice: the interpreter cuts bfloat16 off where devices round.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-10}
# Of results of the size of the values, which are ~1.
ATTENTION_ERROR = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@contextmanager
def _new_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


def _assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance, rtol=tolerance)
    assert actual.dtype == expected.dtype


def _check_norm(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    from kvasir_kernels.rms_norm.kernel import rms_norm

    x, weight = 3 * _random(device, dtype, *shape), _random(device, dtype, shape[-1])
    with _new_memory_is_nan():
        normed = rms_norm(x, weight, 1e-6)
    _assert_close(normed, reference_norm.rms_norm(x, weight, 1e-6), ROUNDING[dtype])


def _check_norm_of_heads(dtype: torch.dtype, num_heads: int, head_dim: int, device: torch.device) -> None:
    """Queries lie beside keys and values: the rows are strided."""
    from kvasir_kernels.rms_norm.kernel import rms_norm

    x = _random(device, dtype, 5, num_heads + 4, head_dim)[:, 1 : num_heads + 1]
    weight = _random(device, dtype, head_dim)
    with _new_memory_is_nan():
        normed = rms_norm(x, weight, 1e-6)
    _assert_close(normed, reference_norm.rms_norm(x, weight, 1e-6), ROUNDING[dtype])


def _check_add_norm(dtype: torch.dtype, num_tokens: int, size: int, device: torch.device) -> None:
    from kvasir_kernels.rms_norm.kernel import add_rms_norm

    x, residual = _random(device, dtype, 2, num_tokens, size).unbind()
    weight, before = _random(device, dtype, size), (x.clone(), residual.clone())
    with _new_memory_is_nan():
        normed, total = add_rms_norm(x, residual, weight, 1e-5)
    _, expected_total = reference_norm.add_rms_norm(x, residual, weight, 1e-5)
    _assert_close(total, expected_total, 0 if device.type == "cuda" else ROUNDING[dtype] / 2)
    expected = reference_norm.rms_norm(total, weight, 1e-5)
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])
    _assert_close(normed, expected, ROUNDING[dtype])


def _check_silu_mul(dtype: torch.dtype, num_tokens: int, width: int, device: torch.device) -> None:
    from kvasir_kernels.silu_mul.kernel import silu_mul

    gate_up = 4 * _random(device, dtype, num_tokens, 2 * width)
    with _new_memory_is_nan():
        gated = silu_mul(gate_up)
    _assert_close(gated, reference_gate.silu_mul(gate_up), 2 * ROUNDING[dtype])


def _check_rotary(dtype: torch.dtype, heads: tuple[int, int, int], device: torch.device) -> None:
    from kvasir_kernels.rotary.kernel import apply_rotary

    num_heads, num_kv_heads, head_dim = heads
    projected = _random(device, dtype, 7, num_heads + 2 * num_kv_heads, head_dim)
    query, key, _ = projected.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    angles = 10 * _random(device, torch.float32, 7, head_dim // 2)
    with _new_memory_is_nan():
        turned = apply_rotary(query, key, angles.cos(), angles.sin())
    expected = reference_rotary.apply_rotary(query, key, angles.cos(), angles.sin())
    for actual, right in zip(turned, expected, strict=True):
        _assert_close(actual, right, ROUNDING[dtype])


def _check_write(dtype: torch.dtype, num_kv_heads: int, head_dim: int, device: torch.device) -> None:
    from kvasir_kernels.write_kv.kernel import write_kv

    shape = (4, 3, num_kv_heads, head_dim)
    actual, expected = (
        LayerCache(*(torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in "kv")) for _ in "ab"
    )
    key, value = _random(device, dtype, 6, 2 * num_kv_heads, head_dim).chunk(2, dim=1)
    slots = torch.tensor([11, -1, 0, 7, -1, 4], device=device)
    write_kv(key, value, slots, actual)
    reference_write.write_kv(key, value, slots, expected)
    assert torch.equal(actual.key.nan_to_num(9.0), expected.key.nan_to_num(9.0))
    assert torch.equal(actual.value.nan_to_num(9.0), expected.value.nan_to_num(9.0))


def _check_rotate_and_write(dtype: torch.dtype, heads: tuple[int, int, int], device: torch.device) -> None:
    from kvasir_kernels.rotate_and_write.kernel import rotate_and_write

    num_heads, num_kv_heads, head_dim = heads
    projected = _random(device, dtype, 6, num_heads + 2 * num_kv_heads, head_dim)
    norms = HeadNorms(*_random(device, dtype, 2, head_dim), 1e-6)
    angles = 10 * _random(device, torch.float32, 6, head_dim // 2)
    slots = torch.tensor([11, -1, 0, 7, -1, 4], device=device)
    caches = [LayerCache(*torch.zeros(2, 4, 3, *heads[1:], dtype=dtype, device=device)) for _ in "ab"]
    with _new_memory_is_nan():
        query = rotate_and_write(projected, norms, angles.cos(), angles.sin(), slots, caches[0])
    expected = reference_rotation.rotate_and_write(projected, norms, angles.cos(), angles.sin(), slots, caches[1])
    tolerance = 4 * ROUNDING[dtype]
    _assert_close(query, expected, tolerance)
    _assert_close(caches[0].key, caches[1].key, tolerance)
    assert torch.equal(caches[0].value, caches[1].value)


def _check_attention(
    lengths: list[Lengths],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    heads: tuple[int, int, int] = (4, 2, 64),
    page_size: int = 16,
    window: int | None = None,
) -> None:
    """Equal to the reference in float32 on the same pages; what lies outside of the contexts is NaN."""
    from kvasir_kernels.paged_attention.kernel import paged_attention

    num_heads, num_kv_heads, head_dim = heads
    lengths = sorted(lengths, key=lambda pair: pair[0] != 1)
    needed = [-(-context // page_size) for _, context in lengths]
    num_pages = sum(needed) + 3
    shape = (num_pages, page_size, num_kv_heads, head_dim)
    cache = LayerCache(*(torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in "kv"))
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(7))
    page_tables = torch.zeros(len(lengths), max(needed) + 2, dtype=torch.int64)
    for index, (pages, (_, context)) in enumerate(zip(order.split([*needed, 3]), lengths, strict=False)):
        page_tables[index, : len(pages)] = pages
        positions = torch.arange(context)
        slots = (pages[positions // page_size] * page_size + positions % page_size).to(device)
        key, value = _random(device, dtype, context, 2 * num_kv_heads, head_dim).chunk(2, dim=1)
        reference_write.write_kv(key, value, slots, cache)
    projected = _random(device, dtype, sum(new for new, _ in lengths), num_heads + 3, head_dim)
    query = projected[:, :num_heads]
    query_lens, context_lens = (tuple(column) for column in zip(*lengths, strict=True))
    batch = AttentionBatch(query_lens, context_lens, page_tables.to(device), query_lens.count(1))
    with _new_memory_is_nan():
        outputs = [paged_attention(query, cache, batch, 0.2, window) for _ in range(2)]
    wide = LayerCache(cache.key.float(), cache.value.float())
    expected = reference_attention(query.float(), wide, batch, 0.2, window).to(dtype)
    _assert_close(outputs[0], expected, ATTENTION_ERROR[dtype])
    assert torch.equal(*outputs), "the second layer of a step takes the first one's cut and must get the same"
    assert len(batch.work) == 1


MIXED = [(1, 1), (1, 9), (1, 64), (1, 65), (5, 5), (3, 11), (7, 70), (40, 130)]
SKEWED = [(1, 900), (1, 3), (1, 40), (1, 128)]
LAYOUTS = [(1, 1, 16), (14, 2, 64), (8, 8, 80), (4, 2, 96), (8, 2, 128), (71, 1, 64), (6, 2, 256)]


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for shape in [(1, 1), (3, 7), (9, 130), (2, 3, 33), (2, 2, 2, 5), (2, 5120)]:
            cases[f"rms_norm {name} {shape}"] = partial(_check_norm, dtype, shape)
        for num_heads, head_dim in [(1, 64), (7, 80), (16, 128)]:
            cases[f"rms_norm of heads {name} {num_heads}x{head_dim}"] = partial(
                _check_norm_of_heads, dtype, num_heads, head_dim
            )
        for num_tokens, size in [(1, 1), (5, 33), (17, 96), (3, 4096)]:
            cases[f"add_rms_norm {name} {num_tokens}x{size}"] = partial(_check_add_norm, dtype, num_tokens, size)
        for num_tokens, width in [(1, 1), (5, 7), (3, 96), (2, 2500)]:
            cases[f"silu_mul {name} {num_tokens}x{width}"] = partial(_check_silu_mul, dtype, num_tokens, width)
        for heads in [(1, 1, 2), (6, 3, 10), (14, 2, 64), (40, 8, 128)]:
            cases[f"rotary {name} {heads}"] = partial(_check_rotary, dtype, heads)
        cases[f"rotate_and_write {name}"] = partial(_check_rotate_and_write, dtype, (6, 3, 80))
        for num_kv_heads, head_dim in [(1, 1), (2, 5), (3, 80), (8, 128)]:
            cases[f"write_kv {name} {num_kv_heads}x{head_dim}"] = partial(_check_write, dtype, num_kv_heads, head_dim)
        for window in (None, 50):
            cases[f"attention {name} window {window}"] = partial(_check_attention, MIXED, dtype=dtype, window=window)
        cases[f"attention {name} skewed"] = partial(_check_attention, SKEWED, dtype=dtype)
    for heads in LAYOUTS:
        cases[f"attention heads {heads}"] = partial(
            _check_attention, [(1, 70), (1, 300), (9, 75)], heads=heads, dtype=torch.float16
        )
    for page_size in (1, 3, 128):
        cases[f"attention pages of {page_size}"] = partial(
            _check_attention, MIXED, page_size=page_size, dtype=torch.float16
        )
    for window in (1, 3, 64, 1000):
        cases[f"attention window {window}"] = partial(_check_attention, MIXED, window=window, dtype=torch.float16)
    cases["attention skewed window 600"] = partial(_check_attention, SKEWED, window=600)
    cases["attention one token"] = partial(_check_attention, [(1, 1)])
    cases["attention one chunk"] = partial(_check_attention, [(67, 67)])
    cases["attention long prefix"] = partial(_check_attention, [(3, 400), (30, 333)])
    return cases


CASES = _cases()


def run_in_interpreter() -> dict[str, str | None]:
    """What went wrong in each case."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    outcomes: dict[str, str | None] = {}
    for name, case in CASES.items():
        try:
            case(torch.device("cpu"))
            outcomes[name] = None
        except Exception:
            outcomes[name] = traceback.format_exc()
    return outcomes


if __name__ == "__main__":
    json.dump(run_in_interpreter(), sys.stdout)
