"""Quantization to float8 on a GPU, and the conversions that other kernels share.

NVIDIA's chips convert from Ada on; elsewhere, and in the interpreter, whose own conversion rounds some numbers to half
their size, it is done with integers, on tensors viewed as uint8.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.float8.reference import BLOCK, FLOAT8, Grain, Quantized
from kvasir_kernels.launch import INTERPRETED, power_of_two

_NUMBERS_PER_PROGRAM = 2048

_LARGEST = tl.constexpr(448.0)
_SMALLEST_PEAK = tl.constexpr(1e-12)
_ROUNDS_TO_WHOLE = tl.constexpr(12582912.0)  # 1.5 * 2**23: what is added to it keeps no fraction


Stored = Literal["wide", "float8", "float8 bits", "int8"]
"""How memory holds a number: as the model computes with it, or in 8 bits."""


def converts_float8() -> bool:
    """Whether the device converts between float8 and wider numbers itself."""
    if INTERPRETED:
        return False
    target = triton.runtime.driver.active.get_current_target()
    return bool(target.backend == "cuda" and target.arch >= 89)


def as_stored(values: Tensor) -> Tensor:
    """What kernels take a tensor as: bytes where the device doesn't convert float8 itself."""
    return values.view(torch.uint8) if values.dtype == FLOAT8 and not converts_float8() else values


def stored_as(dtype: torch.dtype) -> Stored:
    """How kernels find what as_stored gives them."""
    if dtype == torch.int8:
        return "int8"
    if dtype != FLOAT8:
        return "wide"
    return "float8" if converts_float8() else "float8 bits"


def new_scale(num_rows: int, size: int, to: Grain | Tensor, device: torch.device) -> Tensor:
    """Where a kernel puts the scales of [num_rows, size] numbers, or the one that was given."""
    if isinstance(to, Tensor):
        return to
    num_blocks = 1 if to is Grain.ROW else -(-size // BLOCK)
    return torch.empty(num_rows, num_blocks, dtype=torch.float32, device=device)


def grain_name(to: Grain | Tensor) -> str:
    """What store_quantized knows it by."""
    return "given" if isinstance(to, Tensor) else to.value


def quantize(x: Tensor, to: Grain | Tensor) -> Quantized:
    """See reference.py."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    num_rows, size = x.shape
    block_size = max(BLOCK, power_of_two(size))
    block_rows = max(1, _NUMBERS_PER_PROGRAM // block_size)
    values = torch.empty(x.shape, dtype=FLOAT8, device=x.device)
    scale = new_scale(num_rows, size, to, x.device)
    _quantize[(triton.cdiv(num_rows, block_rows),)](
        x, as_stored(values), scale, num_rows, x.stride(0),
        GRAIN=grain_name(to), SIZE=size, ROWS=block_rows, BLOCK=block_size, CONVERTS=converts_float8(),
        num_warps=min(16, max(4, block_size // 512)),
    )  # fmt: skip
    return Quantized(values, scale)


@triton.jit(do_not_specialize=["num_rows"])
def _quantize(
    x: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    num_rows: tl.int32,
    row_stride: tl.int64,
    GRAIN: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CONVERTS: tl.constexpr,
) -> None:
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    is_real = (rows < num_rows)[:, None] & (columns < SIZE)[None, :]
    wide = tl.load(x + rows[:, None] * row_stride + columns[None, :], mask=is_real, other=0.0).to(tl.float32)
    store_quantized(wide, rows, columns, is_real, values, scales, GRAIN, SIZE, ROWS, BLOCK, CONVERTS)


@triton.jit
def store_quantized(
    wide: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    is_real: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    GRAIN: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CONVERTS: tl.constexpr,
) -> None:
    """Quantize [ROWS, BLOCK] numbers, zero where they are not real, and store them with the scales that were found.

    GRAIN: "given", "row" (BLOCK columns are the whole row then) or "block" (columns start at a multiple of 128).
    """
    if GRAIN == "given":
        scaled = wide / tl.load(scales)
    elif GRAIN == "row":
        scale = tl.maximum(tl.max(tl.abs(wide), 1), _SMALLEST_PEAK) / _LARGEST
        tl.store(scales + rows, scale, mask=tl.max(is_real.to(tl.int32), 1) > 0)
        scaled = wide * (1.0 / scale)[:, None]
    else:
        NUM_BLOCKS: tl.constexpr = (SIZE + 127) // 128
        blocks = tl.reshape(wide, (ROWS, BLOCK // 128, 128))
        scale = tl.maximum(tl.max(tl.abs(blocks), 2), _SMALLEST_PEAK) / _LARGEST
        is_block = tl.max(tl.reshape(is_real.to(tl.int32), (ROWS, BLOCK // 128, 128)), 2) > 0
        block_index = tl.min(columns, 0) // 128 + tl.arange(0, BLOCK // 128)
        tl.store(scales + rows[:, None] * NUM_BLOCKS + block_index[None, :], scale, mask=is_block)
        scaled = tl.reshape(blocks * (1.0 / scale)[:, :, None], (ROWS, BLOCK))
    tl.store(values + rows[:, None] * SIZE + columns[None, :], encode(scaled, CONVERTS), mask=is_real)


@triton.jit
def encode(x: tl.tensor, CONVERTS: tl.constexpr) -> tl.tensor:
    """Return float32 as float8, or its bits: rounded to even, cut at the largest number, NaN as NaN."""
    if CONVERTS:
        code = x.to(tl.float8e4nv)
    else:
        bits = x.to(tl.uint32, bitcast=True)
        size = bits & 0x7FFFFFFF
        # The exponent's bias goes from 127 to 7, of 23 digits 3 stay; below 2**-6 they count multiples of 2**-9.
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20).to(tl.int32) - (120 << 3)
        whole = (tl.abs(x) * 512.0 + _ROUNDS_TO_WHOLE).to(tl.uint32, bitcast=True) & 0xFF
        code = tl.where(tl.abs(x) < 0.015625, whole.to(tl.int32), tl.minimum(normal, 0x7E))
        code = tl.where(x == x, code, 0x7F)
        code = (code | ((bits >> 24) & 0x80).to(tl.int32)).to(tl.uint8)
    return code


@triton.jit
def decode(x: tl.tensor, CONVERTS: tl.constexpr) -> tl.tensor:
    """Return float8, or its bits, as float16, in which every number of it has a place."""
    if CONVERTS:
        half = x.to(tl.float16)
    else:
        bits = x.to(tl.uint16)
        size = bits & 0x7F
        half = (((bits & 0x80) << 8) | (size << 7)).to(tl.float16, bitcast=True)
        half = tl.where(size == 0x7F, float("nan"), half.to(tl.float32) * 256.0).to(tl.float16)
    return half


@triton.jit
def widened(x: tl.tensor, dtype: tl.constexpr, STORED: tl.constexpr) -> tl.tensor:
    """Return what memory holds in the dtype in which it is computed with."""
    if STORED == "float8" or STORED == "float8 bits":
        x = decode(x, STORED == "float8")
    return x.to(dtype)


@triton.jit
def narrowed(x: tl.tensor, dtype: tl.constexpr, STORED: tl.constexpr) -> tl.tensor:
    """Return float32, divided by its scale, as memory holds it."""
    if STORED == "float8" or STORED == "float8 bits":
        stored = encode(x, STORED == "float8")
    elif STORED == "int8":
        rounded = (x + _ROUNDS_TO_WHOLE) - _ROUNDS_TO_WHOLE
        stored = tl.maximum(tl.minimum(rounded, 127.0), -127.0).to(tl.int8)
    else:
        stored = x.to(dtype)
    return stored
