"""Packed masks over logits on a GPU: 32 tokens to a word, nothing unpacked in memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_WORDS_PER_PROGRAM = 64


def mask_logits(logits: Tensor, rows: tuple[int, ...], bits: Tensor) -> None:
    """See reference.py; a row's logits lie side by side. One copy to the device, which nobody waits for."""
    num_rows, num_words = bits.shape
    host = torch.cat((torch.tensor(rows, dtype=torch.int32), bits.flatten()))
    there = host.pin_memory().to(logits.device, non_blocking=True) if logits.is_cuda else host
    _mask[(num_rows, triton.cdiv(num_words, _WORDS_PER_PROGRAM))](
        logits, there, num_rows, logits.stride(0), WIDTH=logits.shape[1], NUM_WORDS=num_words,
        WORDS=_WORDS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def _mask(
    logits: tl.tensor,
    rows_and_words: tl.tensor,
    num_rows: tl.int32,
    row_stride: tl.int64,
    WIDTH: tl.constexpr,
    NUM_WORDS: tl.constexpr,
    WORDS: tl.constexpr,
) -> None:
    """Mask WORDS * 32 logits of one row: only what is forbidden is written, and not where a NaN stands."""
    entry = tl.program_id(0)
    row = tl.load(rows_and_words + entry).to(tl.int64)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    words = tl.load(rows_and_words + num_rows + entry.to(tl.int64) * NUM_WORDS + word, mask=word < NUM_WORDS, other=0)
    bit = tl.arange(0, 32)
    token = word[:, None] * 32 + bit[None, :]
    is_forbidden = (((words[:, None] >> bit[None, :]) & 1) == 0) & (token < WIDTH)
    places = logits + row * row_stride + token
    values = tl.load(places, mask=is_forbidden, other=0.0)
    tl.store(places, tl.full(places.shape, float("-inf"), tl.float32), mask=is_forbidden & (values == values))
