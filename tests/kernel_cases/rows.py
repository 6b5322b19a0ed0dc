"""Operations on rows: norms, gates, quantization."""

from functools import partial

import torch

from kvasir_kernels.float8 import reference as reference_float8
from kvasir_kernels.rms_norm import reference as reference_norm
from kvasir_kernels.silu_mul import reference as reference_gate
from tests.kernel_cases.checking import (
    DTYPES,
    ROUNDING,
    Case,
    assert_close,
    assert_quantized,
    grains,
    name_of,
    new_memory_is_nan,
    random,
)


def _check_norm(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    from kvasir_kernels.rms_norm.kernel import rms_norm

    x, weight = 3 * random(device, dtype, *shape), random(device, dtype, shape[-1])
    with new_memory_is_nan():
        normed = rms_norm(x, weight, 1e-6)
    assert_close(normed, reference_norm.rms_norm(x, weight, 1e-6), ROUNDING[dtype])


def _check_norm_of_heads(dtype: torch.dtype, num_heads: int, head_dim: int, device: torch.device) -> None:
    """Queries lie beside keys and values: the rows are strided."""
    from kvasir_kernels.rms_norm.kernel import rms_norm

    x = random(device, dtype, 5, num_heads + 4, head_dim)[:, 1 : num_heads + 1]
    weight = random(device, dtype, head_dim)
    with new_memory_is_nan():
        normed = rms_norm(x, weight, 1e-6)
    assert_close(normed, reference_norm.rms_norm(x, weight, 1e-6), ROUNDING[dtype])


def _check_add_norm(dtype: torch.dtype, num_tokens: int, size: int, device: torch.device) -> None:
    from kvasir_kernels.rms_norm.kernel import add_rms_norm

    x, residual = random(device, dtype, 2, num_tokens, size).unbind()
    weight, before = random(device, dtype, size), (x.clone(), residual.clone())
    with new_memory_is_nan():
        normed, total = add_rms_norm(x, residual, weight, 1e-5)
    _, expected_total = reference_norm.add_rms_norm(x, residual, weight, 1e-5)
    assert_close(total, expected_total, 0 if device.type == "cuda" else ROUNDING[dtype] / 2)
    expected = reference_norm.rms_norm(total, weight, 1e-5)
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])
    assert_close(normed, expected, ROUNDING[dtype])


def _check_add_norm_float8(num_tokens: int, size: int, grain: str, device: torch.device) -> None:
    from kvasir_kernels.rms_norm.kernel import add_rms_norm_float8

    x, residual = random(device, torch.float32, 2, num_tokens, size).unbind()
    weight, to = random(device, torch.float32, size), grains(device)[grain]
    with new_memory_is_nan():
        quantized, total = add_rms_norm_float8(x, residual, weight, 1e-5, to)
    expected, expected_total = reference_norm.add_rms_norm_float8(x, residual, weight, 1e-5, to)
    assert_close(total, expected_total, ROUNDING[torch.float32])
    normed = reference_norm.rms_norm(x + residual, weight, 1e-5)
    assert_quantized(quantized, normed, expected, 4 * ROUNDING[torch.float32])


def _check_quantize(dtype: torch.dtype, num_tokens: int, size: int, grain: str, device: torch.device) -> None:
    from kvasir_kernels.float8.kernel import quantize

    x, to = 3 * random(device, dtype, num_tokens, 2 * size)[:, :size], grains(device)[grain]
    with new_memory_is_nan():
        quantized = quantize(x, to)
    assert_quantized(quantized, x, reference_float8.quantize(x, to), ROUNDING[torch.float32])


def _check_every_float8(device: torch.device) -> None:
    """All numbers of the dtype, what lies halfway between them, and what it has no number for."""
    from kvasir_kernels.float8.kernel import quantize

    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ordered = numbers[numbers.isfinite()].sort().values
    between = (ordered[1:] + ordered[:-1]) / 2
    x = torch.cat((numbers, between, torch.tensor([449.0, 1e9, -1e9, 1e-9, -0.0, torch.nan]))).unsqueeze(0).to(device)
    to = torch.ones(1, device=device)
    actual, expected = quantize(x, to), reference_float8.quantize(x, to)
    assert torch.equal(actual.values.float().nan_to_num(9e9), expected.values.float().nan_to_num(9e9))


def _check_gate(dtype: torch.dtype, activation: str, num_tokens: int, width: int, device: torch.device) -> None:
    from kvasir_kernels.silu_mul import kernel

    gate_up = 4 * random(device, dtype, num_tokens, 2 * width)
    with new_memory_is_nan():
        gated = getattr(kernel, f"{activation}_mul")(gate_up)
    assert_close(gated, getattr(reference_gate, f"{activation}_mul")(gate_up), 2 * ROUNDING[dtype])


def _check_gate_float8(activation: str, num_tokens: int, width: int, grain: str, device: torch.device) -> None:
    from kvasir_kernels.silu_mul import kernel

    gate_up, to = 2 * random(device, torch.float32, num_tokens, 2 * width), grains(device)[grain]
    with new_memory_is_nan():
        quantized = getattr(kernel, f"{activation}_mul_float8")(gate_up, to)
    expected = getattr(reference_gate, f"{activation}_mul_float8")(gate_up, to)
    gated = getattr(reference_gate, f"{activation}_mul")(gate_up)
    if grain == "given":
        gated = gated.clamp(-448 * 0.03, 448 * 0.03)
    assert_quantized(quantized, gated, expected, 4 * ROUNDING[torch.float32])


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {"quantize every float8": _check_every_float8}
    for dtype in DTYPES:
        name = name_of(dtype)
        for shape in [(1, 1), (0, 8), (3, 7), (9, 130), (2, 3, 33), (2, 2, 2, 5), (2, 5120)]:
            found[f"rms_norm {name} {shape}"] = partial(_check_norm, dtype, shape)
        for num_heads, head_dim in [(1, 64), (7, 80), (16, 128)]:
            found[f"rms_norm of heads {name} {num_heads}x{head_dim}"] = partial(
                _check_norm_of_heads, dtype, num_heads, head_dim
            )
        for num_tokens, size in [(1, 1), (5, 33), (17, 96), (3, 4096)]:
            found[f"add_rms_norm {name} {num_tokens}x{size}"] = partial(_check_add_norm, dtype, num_tokens, size)
        for activation in ("silu", "gelu"):
            for num_tokens, width in [(1, 1), (0, 4), (5, 7), (3, 96), (2, 2500)]:
                found[f"{activation}_mul {name} {num_tokens}x{width}"] = partial(
                    _check_gate, dtype, activation, num_tokens, width
                )
        for grain in ("row", "block", "given"):
            found[f"quantize {name} {grain}"] = partial(_check_quantize, dtype, 5, 200, grain)
    for grain in ("row", "block", "given"):
        found[f"quantize one number {grain}"] = partial(_check_quantize, torch.float32, 1, 1, grain)
        for num_tokens, size in [(1, 1), (19, 300), (2, 2048)]:
            found[f"add_rms_norm_float8 {num_tokens}x{size} {grain}"] = partial(
                _check_add_norm_float8, num_tokens, size, grain
            )
        for activation, num_tokens, width in [("silu", 1, 1), ("silu", 3, 5000), ("gelu", 2, 1200)]:
            found[f"{activation}_mul_float8 {num_tokens}x{width} {grain}"] = partial(
                _check_gate_float8, activation, num_tokens, width, grain
            )
    return found
