"""What the cases have in common."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kvasir_kernels.float8.reference import Grain, Quantized
from kvasir_kernels.paged_cache import CacheScales, LayerCache

Case = Callable[[torch.device], None]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Relative, for operations that round twice: the interpreter cuts bfloat16 off where devices round.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-10}
# Of a number in 8 bits, to the number that it was: relative, and of the largest number that has the same scale.
FLOAT8_ERROR, FLOAT8_FLOOR = 2**-4, 2**-10 / 448


@contextmanager
def new_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance, rtol=tolerance)
    assert actual.dtype == expected.dtype


def assert_quantized(actual: Quantized, x: Tensor, expected: Quantized, rounding: float) -> None:
    """Stands for x, rounded once, and has the scales of the reference."""
    torch.testing.assert_close(actual.scale, expected.scale, atol=0, rtol=rounding)
    assert actual.values.dtype == torch.float8_e4m3fn
    peak = x.abs().max().item()
    error = FLOAT8_ERROR + 2 * rounding
    torch.testing.assert_close(actual.widened(), x.float(), atol=peak * (FLOAT8_FLOOR + rounding), rtol=error)


def grains(device: torch.device) -> dict[str, Grain | Tensor]:
    return {"row": Grain.ROW, "block": Grain.BLOCK, "given": torch.tensor([0.03], device=device)}


def nan_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scaled_by: str) -> LayerCache:
    """[N, P, K, D]; what can't hold NaN holds bits that stand out."""
    if scaled_by == "nothing":
        return LayerCache(*(torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in "kv"))
    bits = [torch.full(shape, 0x7F, dtype=torch.uint8, device=device).view(dtype) for _ in "kv"]
    largest = 448 if dtype == torch.float8_e4m3fn else 127
    if scaled_by == "heads":
        scales = (torch.arange(3, 3 + shape[2], device=device) / largest for _ in "kv")
    else:
        scales = (torch.full(shape[:3], torch.nan, device=device) for _ in "kv")
    return LayerCache(*bits, CacheScales(*scales))
