"""RMSNorm on a GPU (Zhang and Sennrich, 2019), alone or with the residual addition before it, also straight to float8.

Rounded where the reference rounds: the sum, and the normalised row before it meets the weight.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.float8.kernel import as_stored, converts_float8, grain_name, new_scale, store_quantized
from kvasir_kernels.float8.reference import BLOCK, FLOAT8, Grain, Quantized
from kvasir_kernels.launch import power_of_two

_NUMBERS_PER_PROGRAM = 2048
"""Short rows (a head's) share a program, so that each of its threads loads 16 bytes or more."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See reference.py; x: [..., E], its last axis contiguous."""
    rows = x if x.dim() == 3 else x.reshape(-1, 1, x.shape[-1])
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(rows, None, weight, eps, None, out, None)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See reference.py."""
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)
    _launch(x.unsqueeze(1), residual, weight, eps, total, out, None)
    return out, total


def add_rms_norm_float8(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, to: Grain | Tensor
) -> tuple[Quantized, Tensor]:
    """See reference.py."""
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty(x.shape, dtype=FLOAT8, device=x.device), torch.empty_like(x)
    scale = new_scale(x.shape[0], x.shape[1], to, x.device)
    _launch(x.unsqueeze(1), residual, weight, eps, total, as_stored(out), scale, grain_name(to))
    return Quantized(out, scale), total


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    total: Tensor | None,
    out: Tensor,
    scale: Tensor | None,
    grain: str = "none",
) -> None:
    """x: [A, B, E]; residual, total and out have its A * B rows contiguous."""
    num_rows, size = x.shape[0] * x.shape[1], x.shape[2]
    if x.stride(2) != 1:
        x = x.contiguous()
    block_size = power_of_two(size) if scale is None else max(BLOCK, power_of_two(size))
    block_rows = max(1, _NUMBERS_PER_PROGRAM // block_size)
    _normalise[(triton.cdiv(num_rows, block_rows),)](
        x, residual, weight, total, out, scale, eps, num_rows, x.stride(0), x.stride(1),
        NUM_INNER=x.shape[1], SIZE=size, BLOCK_ROWS=block_rows, BLOCK_SIZE=block_size, GRAIN=grain,
        CONVERTS=scale is not None and converts_float8(), num_warps=min(16, max(4, block_size // 512)),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def _normalise(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    eps: tl.float32,
    num_rows: tl.int32,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    NUM_INNER: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GRAIN: tl.constexpr,
    CONVERTS: tl.constexpr,
) -> None:
    """Normalise BLOCK_ROWS rows; row r of x is x[r // NUM_INNER, r % NUM_INNER]."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_SIZE)
    is_real = (rows < num_rows)[:, None] & (columns < SIZE)[None, :]
    starts = (rows // NUM_INNER) * outer_stride + (rows % NUM_INNER) * inner_stride
    wide = tl.load(x + starts[:, None] + columns[None, :], mask=is_real, other=0.0).to(tl.float32)
    places = rows[:, None] * SIZE + columns[None, :]
    if residual is not None:
        wide += tl.load(residual + places, mask=is_real, other=0.0).to(tl.float32)
        wide = wide.to(x.dtype.element_ty)
        tl.store(total + places, wide, mask=is_real)
        wide = wide.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / SIZE + eps)
    normed = (wide * scale[:, None]).to(x.dtype.element_ty).to(tl.float32)
    weights = tl.load(weight + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    weighted = (weights[None, :] * normed).to(x.dtype.element_ty)
    if GRAIN == "none":
        tl.store(out + places, weighted, mask=is_real)
    else:
        wide = weighted.to(tl.float32)
        store_quantized(wide, rows, columns, is_real, out, scales, GRAIN, SIZE, BLOCK_ROWS, BLOCK_SIZE, CONVERTS)
