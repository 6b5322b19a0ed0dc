"""SwiGLU's gate on a GPU (Shazeer, 2020), rounded where the reference rounds: after silu, and at the end."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS_PER_PROGRAM = 1024
"""Two rows of 16 bytes for each of 128 threads in half precision."""


def silu_mul(gate_up: Tensor) -> Tensor:
    """See reference.py; gate_up: [T, 2F], its last axis contiguous."""
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    grid = (num_tokens, triton.cdiv(width, _COLUMNS_PER_PROGRAM))
    _gate[grid](gate_up, out, gate_up.stride(0), WIDTH=width, BLOCK=_COLUMNS_PER_PROGRAM, num_warps=4)
    return out


@triton.jit
def _gate(gate_up: tl.tensor, out: tl.tensor, row_stride: tl.int64, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Compute BLOCK columns of one token."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_real = columns < WIDTH
    start = gate_up + row * row_stride
    gate = tl.load(start + columns, mask=is_real, other=0.0).to(tl.float32)
    up = tl.load(start + WIDTH + columns, mask=is_real, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * WIDTH + columns, (silu * up).to(out.dtype.element_ty), mask=is_real)
