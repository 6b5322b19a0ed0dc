"""Penalties on a GPU: all rows in one launch."""

import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.penalise.reference import SeenTable, SeenTokens

_PAIRS_PER_PROGRAM = 512

_TOKENS_PER_PROGRAM = 2048


def penalise(logits: Tensor, seen: SeenTokens | SeenTable) -> None:
    """See reference.py; a row's logits lie side by side."""
    if isinstance(seen, SeenTable):
        num_rows, width = logits.shape
        _penalise_all[(num_rows, triton.cdiv(width, _TOKENS_PER_PROGRAM))](
            logits, seen.table, seen.places, seen.repetition, seen.presence, seen.frequency, logits.stride(0),
            WIDTH=width, BLOCK=_TOKENS_PER_PROGRAM, num_warps=4,
        )  # fmt: skip
        return
    num_pairs = len(seen.rows)
    _penalise[(triton.cdiv(num_pairs, _PAIRS_PER_PROGRAM),)](
        logits, seen.rows, seen.token_ids, seen.counts, seen.repetition, seen.presence, seen.frequency,
        num_pairs, logits.stride(0), BLOCK=_PAIRS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_pairs"])
def _penalise(
    logits: tl.tensor,
    rows: tl.tensor,
    token_ids: tl.tensor,
    counts: tl.tensor,
    repetitions: tl.tensor,
    presences: tl.tensor,
    frequencies: tl.tensor,
    num_pairs: tl.int32,
    row_stride: tl.int64,
    BLOCK: tl.constexpr,
) -> None:
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_pair = index < num_pairs
    row = tl.load(rows + index, mask=is_pair, other=0)
    places = logits + row * row_stride + tl.load(token_ids + index, mask=is_pair, other=0)
    count = tl.load(counts + index, mask=is_pair, other=0.0)
    values = tl.load(places, mask=is_pair, other=0.0)
    values = _penalised(values, count, repetitions + row, presences + row, frequencies + row)
    tl.store(places, values, mask=is_pair)


@triton.jit
def _penalise_all(
    logits: tl.tensor,
    table: tl.tensor,
    places: tl.tensor,
    repetitions: tl.tensor,
    presences: tl.tensor,
    frequencies: tl.tensor,
    row_stride: tl.int64,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Penalise BLOCK tokens of one row; of those that were not seen the logits are not even read."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(places + row)
    if place < 0:
        return
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    entries = tl.load(table + place * WIDTH + tokens, mask=tokens < WIDTH, other=0)
    is_seen, count = entries > 0, (entries >> 1).to(tl.float32)
    values = tl.load(logits + row * row_stride + tokens, mask=is_seen, other=0.0)
    values = _penalised(values, count, repetitions + row, presences + row, frequencies + row)
    tl.store(logits + row * row_stride + tokens, values, mask=is_seen)


@triton.jit
def _penalised(
    values: tl.tensor, count: tl.tensor, repetition: tl.tensor, presence: tl.tensor, frequency: tl.tensor
) -> tl.tensor:
    """Return logits of tokens that were seen, `count` times in the answer; the rest: where each one's penalties are."""
    factor = tl.load(repetition)
    values = tl.where(values > 0, values / factor, values * factor)
    return values - (tl.load(frequency) * count + tl.where(count > 0, tl.load(presence), 0.0))
