"""SwiGLU's and GeGLU's gates on a GPU (Shazeer, 2020), also straight to float8.

Rounded where the reference rounds: after the activation, and at the end.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.float8.kernel import as_stored, converts_float8, encode, grain_name, new_scale, store_quantized
from kvasir_kernels.float8.reference import FLOAT8, Grain, Quantized
from kvasir_kernels.launch import power_of_two

Activation = Literal["silu", "gelu"]

_COLUMNS_PER_PROGRAM = 1024
"""Two rows of 16 bytes for each of 128 threads in half precision."""

_COLUMNS_OF_A_TURN = 4096
"""Where a row's largest number is wanted before any is stored, one program goes along the row, twice."""

_LOG2_E = tl.constexpr(1.4426950408889634)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See reference.py; gate_up: [T, 2F], its last axis contiguous."""
    return _gated(gate_up, "silu")


def gelu_mul(gate_up: Tensor) -> Tensor:
    """See reference.py; gate_up: [T, 2F], its last axis contiguous."""
    return _gated(gate_up, "gelu")


def silu_mul_float8(gate_up: Tensor, to: Grain | Tensor) -> Quantized:
    """See reference.py; gate_up: [T, 2F], its last axis contiguous."""
    return _gated_float8(gate_up, "silu", to)


def gelu_mul_float8(gate_up: Tensor, to: Grain | Tensor) -> Quantized:
    """See reference.py; gate_up: [T, 2F], its last axis contiguous."""
    return _gated_float8(gate_up, "gelu", to)


def _gated(gate_up: Tensor, activation: Activation) -> Tensor:
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    grid = (num_tokens, triton.cdiv(width, _COLUMNS_PER_PROGRAM))
    _gate[grid](
        gate_up, out, None, gate_up.stride(0), ACTIVATION=activation, GRAIN="none", CONVERTS=False,
        WIDTH=width, BLOCK=_COLUMNS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
    return out


def _gated_float8(gate_up: Tensor, activation: Activation, to: Grain | Tensor) -> Quantized:
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    values = torch.empty(num_tokens, width, dtype=FLOAT8, device=gate_up.device)
    scale = new_scale(num_tokens, width, to, gate_up.device)
    arguments = (gate_up, as_stored(values), scale, gate_up.stride(0))
    if to is Grain.ROW:
        block = max(128, min(_COLUMNS_OF_A_TURN, power_of_two(width)))
        _gate_row[(num_tokens,)](
            *arguments, ACTIVATION=activation, CONVERTS=converts_float8(), WIDTH=width, BLOCK=block, num_warps=8
        )
    else:
        _gate[(num_tokens, triton.cdiv(width, _COLUMNS_PER_PROGRAM))](
            *arguments, ACTIVATION=activation, GRAIN=grain_name(to), CONVERTS=converts_float8(),
            WIDTH=width, BLOCK=_COLUMNS_PER_PROGRAM, num_warps=4,
        )  # fmt: skip
    return Quantized(values, scale)


@triton.jit
def _gate(
    gate_up: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    row_stride: tl.int64,
    ACTIVATION: tl.constexpr,
    GRAIN: tl.constexpr,
    CONVERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Compute BLOCK columns of one token."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gated = _activated(gate_up + row * row_stride, columns, ACTIVATION, WIDTH)
    if GRAIN == "none":
        tl.store(out + row * WIDTH + columns, gated.to(out.dtype.element_ty), mask=columns < WIDTH)
    else:
        rows = row + tl.arange(0, 1)
        is_real = (columns < WIDTH)[None, :]
        store_quantized(gated[None, :], rows, columns, is_real, out, scales, GRAIN, WIDTH, 1, BLOCK, CONVERTS)


@triton.jit
def _gate_row(
    gate_up: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    row_stride: tl.int64,
    ACTIVATION: tl.constexpr,
    CONVERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Compute one token, all of whose numbers share a scale: the second time they come from the cache."""
    row = tl.program_id(0).to(tl.int64)
    source = gate_up + row * row_stride
    peaks = tl.full((BLOCK,), 1e-12, tl.float32)
    for start in tl.range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        peaks = tl.maximum(peaks, tl.abs(_activated(source, columns, ACTIVATION, WIDTH)))
    peak = tl.max(peaks, 0)
    tl.store(scales + row, peak / 448.0)
    for start in tl.range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        scaled = _activated(source, columns, ACTIVATION, WIDTH) * (448.0 / peak)
        tl.store(values + row * WIDTH + columns, encode(scaled, CONVERTS), mask=columns < WIDTH)


@triton.jit
def _activated(source: tl.tensor, columns: tl.tensor, ACTIVATION: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    """Return the gated numbers of some columns in float32, zero beyond the width."""
    dtype = source.dtype.element_ty
    gate = tl.load(source + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    up = tl.load(source + WIDTH + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        activated = gate / (1.0 + tl.exp2(-gate * _LOG2_E))
    else:
        # x * (1 + tanh(y)) / 2 is x / (1 + exp(-2 y)).
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        activated = gate / (1.0 + tl.exp2(-2.0 * inner * _LOG2_E))
    return (activated.to(dtype).to(tl.float32) * up).to(dtype).to(tl.float32)
