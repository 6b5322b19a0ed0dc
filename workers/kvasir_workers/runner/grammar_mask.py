"""Keeps structured rows to their grammars: masks made on the host, applied to the logits where those are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_kernels.sampling_dispatch import mask_logits
from kvasir_protocol.request import SamplingParams
from kvasir_workers.grammar.state import GrammarState, mask_threads, packed_masks


class StructuredRow(NamedTuple):
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
    for ends, places in _early_places(rows, eos_token_ids).items():
        _forbid_ends(bits, places, ends)
    return GrammarMasks(rows=tuple(row.row for row in rows), bits=torch.from_numpy(bits.view(np.int32)))


def _early_places(rows: Sequence[StructuredRow], eos_token_ids: frozenset[int]) -> dict[frozenset[int], list[int]]:
    """Rows below min_tokens, by the tokens that would end them."""
    places: dict[frozenset[int], list[int]] = {}
    for place, row in enumerate(rows):
        if row.num_generated < row.sampling.min_tokens:
            stops = row.sampling.stop_token_ids
            places.setdefault(eos_token_ids.union(stops) if stops else eos_token_ids, []).append(place)
    return places


_threads = cache(mask_threads)
"""One set for the process, at the first structured step."""


def _forbid_ends(bits: NDArray[np.uint32], places: list[int], ends: frozenset[int]) -> None:
    longer = bits[places]
    for token_id in ends:
        longer[:, token_id // 32] &= ~np.uint32(1 << token_id % 32)
    may_go_on = longer.any(axis=1)
    bits[np.array(places)[may_go_on]] = longer[may_go_on]


def apply_masks(logits: Tensor, masks: GrammarMasks) -> None:
    """Lower what is not allowed to -inf, in place; NaN stays NaN. logits: [rows of the step, V] float32."""
    mask_logits(logits, masks.rows, masks.bits)
