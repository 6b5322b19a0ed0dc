"""Packed masks over logits in plain torch.

Each byte of a mask looks up eight ceilings: branchless, and so equally fast however many tokens are allowed.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_BLOCK_LOGITS = {"cpu": 2**18}
"""Logits that are masked at once: on a CPU what its cache holds."""

_BLOCK_LOGITS_ELSEWHERE = 2**26
"""Bounds the memory in between to 256 MiB."""


def mask_logits(logits: Tensor, rows: tuple[int, ...], bits: Tensor) -> None:
    """Lower what is not allowed to -inf, in place; NaN stays NaN. Other rows are not touched.

    logits: [R, V] float32. rows: S of them, ascending. bits: [S, ceil(V / 32)] int32 on the host; token i of a row is
    allowed by bit i % 32 of its word i // 32.
    """
    width = logits.shape[-1]
    codes = bits.to(logits.device, non_blocking=True).view(torch.uint8)
    ceilings = _ceilings(logits.device)
    num_rows = max(1, _BLOCK_LOGITS.get(logits.device.type, _BLOCK_LOGITS_ELSEWHERE) // width)
    for start in range(0, len(rows), num_rows):
        chosen = rows[start : start + num_rows]
        block = codes[start : start + num_rows].int()
        _lower(logits, chosen, functional.embedding(block, ceilings).view(len(chosen), -1)[:, :width])


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
