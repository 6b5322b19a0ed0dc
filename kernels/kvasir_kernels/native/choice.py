"""Whether the C++ kernels compute what they could."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kvasir_kernels.native.library import KernelLibrary, load_library, takes


class _Choice:
    """Of the process: steps may run in a thread of their own."""

    is_native = True


@contextmanager
def without_native_kernels() -> Iterator[None]:
    """Compute as a machine without compiler would: for tests and measurements."""
    before, _Choice.is_native = _Choice.is_native, False
    try:
        yield
    finally:
        _Choice.is_native = before


def native_library(x: Tensor, dtype: torch.dtype | None = None) -> KernelLibrary | None:
    """What computes on `x` in `dtype`, which is its own unless it is said; None: nothing native."""
    return native_mover(x) if takes(dtype or x.dtype) else None


def native_mover(x: Tensor) -> KernelLibrary | None:
    """What moves the bytes of `x`, whatever they stand for; None: nothing native."""
    return load_library() if x.device.type == "cpu" and _Choice.is_native else None
