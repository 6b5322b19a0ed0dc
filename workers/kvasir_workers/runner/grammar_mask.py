"""Keeps structured rows to their grammars, by their logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_protocol.request import SamplingParams
from kvasir_workers.grammar.state import GrammarState


@dataclass(frozen=True, slots=True)
class StructuredRow:
    """A row of a step's logits whose next token a grammar restricts."""

    row: int
    grammar: GrammarState
    num_generated: int
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class GrammarMasks:
    """allowed: [S, V], what may follow in each of the S rows."""

    rows: tuple[int, ...]
    allowed: NDArray[np.bool_]


def make_masks(rows: Sequence[StructuredRow], eos_token_ids: frozenset[int]) -> GrammarMasks:
    """What the rows' grammars allow next.

    Below min_tokens the ends that a row might come to are forbidden, too, unless its grammar allows nothing else.
    """
    return GrammarMasks(tuple(row.row for row in rows), np.stack([_allowed(row, eos_token_ids) for row in rows]))


def apply_masks(logits: Tensor, masks: GrammarMasks) -> None:
    """Forbid what the masks do not allow, in place; other rows are not touched. logits: [R, V]."""
    rows = list(masks.rows)
    forbidden = ~torch.from_numpy(masks.allowed).to(logits.device)
    logits[rows] = logits[rows].masked_fill(forbidden, -torch.inf)


def _allowed(row: StructuredRow, eos_token_ids: frozenset[int]) -> NDArray[np.bool_]:
    allowed = row.grammar.allowed()
    if row.num_generated < row.sampling.min_tokens:
        longer = allowed.copy()
        longer[[*eos_token_ids, *row.sampling.stop_token_ids]] = False
        if longer.any():
            return longer
    return allowed
