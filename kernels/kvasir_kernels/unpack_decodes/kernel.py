"""Unpacking on a GPU: one program for some columns of a row's page table; the first also for what else the row has."""

import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.unpack_decodes.reference import HEADER, DecodeInputs

_COLUMNS_PER_PROGRAM = 512

_HEADER = tl.constexpr(HEADER)


def unpack_decodes(packed: Tensor, said: Tensor, num_rows: int, page_size: int, inputs: DecodeInputs) -> None:
    """See reference.py."""
    capacity, num_pages = inputs.page_tables.shape
    _unpack[(num_rows, triton.cdiv(num_pages, _COLUMNS_PER_PROGRAM))](
        packed, said, inputs.token_ids, inputs.positions, inputs.slots, inputs.context_lens, inputs.page_tables,
        CAPACITY=capacity, NUM_PAGES=num_pages, PAGE_SIZE=page_size, COLUMNS=_COLUMNS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip


@triton.jit
def _unpack(
    packed: tl.tensor,
    said: tl.tensor,
    token_ids: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    context_lens: tl.tensor,
    page_tables: tl.tensor,
    CAPACITY: tl.constexpr,
    NUM_PAGES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_real, width = tl.load(packed), tl.load(packed + 1)
    is_real = row < num_real
    table = packed + _HEADER + 3 * CAPACITY + row * width
    columns = part * COLUMNS + tl.arange(0, COLUMNS)
    is_sent = is_real & (columns < width)
    pages = tl.load(table + columns, mask=is_sent, other=0)
    tl.store(page_tables + row * NUM_PAGES + columns, pages.to(tl.int64), mask=is_sent)
    if part == 0:
        entry = packed + _HEADER + row
        said_row = tl.load(entry + CAPACITY, mask=is_real, other=-1)
        known = tl.load(entry, mask=is_real, other=0).to(tl.int64)
        token = tl.where(said_row >= 0, tl.load(said + said_row, mask=said_row >= 0, other=0), known)
        position = tl.load(entry + 2 * CAPACITY, mask=is_real, other=0)
        page = tl.load(table + position // PAGE_SIZE, mask=is_real, other=0).to(tl.int64)
        tl.store(token_ids + row, token)
        tl.store(positions + row, position.to(tl.int64))
        tl.store(slots + row, tl.where(is_real, page * PAGE_SIZE + position % PAGE_SIZE, -1))
        tl.store(context_lens + row, tl.where(is_real, position + 1, 0))
