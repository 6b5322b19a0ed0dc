"""Keeps structured rows to their grammars: masks made on the host, applied to the logits where those are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kvasir_protocol.request import SamplingParams
from kvasir_workers.grammar.state import GrammarState, mask_threads, packed_masks

_BLOCK_LOGITS = {"cpu": 2**18}
"""Logits that are masked at once: on a CPU what its cache holds."""

_BLOCK_LOGITS_ELSEWHERE = 2**26
"""Bounds the memory in between to 256 MiB."""


@dataclass(frozen=True, slots=True)
class StructuredRow:
    """One row of a step that has a grammar, as it is when its next token is to be chosen.

    num_generated: tokens of the answer before that one; grammar has accepted them all.
    """

    row: int
    grammar: GrammarState
    num_generated: int
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class GrammarMasks:
    """What may come next. rows: R, ascending; bits: [R, ceil(V / 32)] int32 on the host, token i in bit i % 32."""

    rows: tuple[int, ...]
    bits: Tensor


def make_masks(rows: Sequence[StructuredRow], eos_token_ids: frozenset[int]) -> GrammarMasks:
    """The masks of a step's structured rows (one at least, ascending); works on the host alone.

    Below min_tokens the ends that a row might come to are forbidden, too, unless its grammar allows nothing else.
    """
    bits = packed_masks([row.grammar for row in rows], _threads())
    for place, row in enumerate(rows):
        if row.num_generated < row.sampling.min_tokens:
            _forbid_ends(bits[place], (*eos_token_ids, *row.sampling.stop_token_ids))
    return GrammarMasks(rows=tuple(row.row for row in rows), bits=torch.from_numpy(bits.view(np.int32)))


_threads = cache(mask_threads)
"""One set for the process, at the first structured step."""


def _forbid_ends(bits: NDArray[np.uint32], ends: Iterable[int]) -> None:
    allowed = [token_id for token_id in ends if int(bits[token_id // 32]) >> token_id % 32 & 1]
    if not allowed:
        return
    longer = bits.copy()
    for token_id in allowed:
        longer[token_id // 32] &= ~np.uint32(1 << token_id % 32)
    if longer.any():
        bits[:] = longer


def apply_masks(logits: Tensor, masks: GrammarMasks) -> None:
    """Lower what is not allowed to -inf, in place; NaN stays NaN. logits: [rows of the step, V] float32.

    Each byte of a mask looks up eight ceilings: branchless, and so equally fast however many tokens are allowed.
    """
    width = logits.shape[-1]
    codes = masks.bits.to(logits.device, non_blocking=True).view(torch.uint8)
    ceilings = _ceilings(logits.device)
    num_rows = max(1, _BLOCK_LOGITS.get(logits.device.type, _BLOCK_LOGITS_ELSEWHERE) // width)
    for start in range(0, len(masks.rows), num_rows):
        rows = masks.rows[start : start + num_rows]
        block = codes[start : start + num_rows].int()
        _lower(logits, rows, functional.embedding(block, ceilings).view(len(rows), -1)[:, :width])


def _lower(logits: Tensor, rows: tuple[int, ...], ceiling: Tensor) -> None:
    if rows[-1] - rows[0] + 1 == len(rows):
        part = logits[rows[0] : rows[-1] + 1]
        torch.minimum(part, ceiling, out=part)
    else:
        index = torch.tensor(rows, device=logits.device)
        logits.index_copy_(0, index, torch.minimum(logits.index_select(0, index), ceiling))


@cache
def _ceilings(device: torch.device) -> Tensor:
    """[256, 8]: of the tokens that a byte's bits stand for, +inf where the bit is set."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.from_numpy(np.where(bits, np.inf, -np.inf).astype(np.float32)).to(device)
