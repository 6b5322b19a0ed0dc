"""Products of float8 with float8."""

from functools import partial

import torch

from kvasir_kernels.float8.reference import Grain, quantize, quantize_weight
from kvasir_kernels.float8_linear.reference import float8_linear as reference_linear
from tests.kernel_cases.checking import Case, assert_close, new_memory_is_nan, random


def _check_linear(
    grain: str, sizes: tuple[int, int, int], device: torch.device, *, dtype: torch.dtype = torch.float32
) -> None:
    from kvasir_kernels.float8_linear.kernel import float8_linear

    num_tokens, num_inputs, num_outputs = sizes
    x = random(device, torch.float32, num_tokens, num_inputs)
    weight = random(device, torch.float32, num_outputs, num_inputs)
    bias = random(device, torch.float32, num_outputs)
    if grain == "given":
        scales = torch.tensor([[0.02], [0.03]], device=device)
        left, right = quantize(x, scales[0]), quantize(weight, scales[1])
    else:
        left, right = quantize(x, Grain(grain)), quantize_weight(weight, Grain(grain))
    with new_memory_is_nan():
        products = float8_linear(left, right, bias, dtype)
    expected = reference_linear(left, right, bias, dtype)
    error = 1e-5 * num_inputs**0.5 if dtype == torch.float32 else 2**-7
    if device.type == "cuda":
        error = max(error, 2e-3 * num_inputs**0.5)  # tensor cores keep some 14 bits of a sum of 128 products
    assert_close(products, expected, error)


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for grain in ("row", "block", "given"):
        for sizes in [(1, 1, 1), (3, 40, 65), (20, 300, 130), (2, 256, 128), (70, 128, 200)]:
            found[f"float8_linear {grain} {sizes}"] = partial(_check_linear, grain, sizes)
        found[f"float8_linear {grain} bfloat16"] = partial(_check_linear, grain, (5, 256, 72), dtype=torch.bfloat16)
    return found
