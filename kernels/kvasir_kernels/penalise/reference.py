"""Penalties in plain torch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SeenTokens:
    """M pairs of a row and a token that was seen there, each pair once, and what R rows ask for.

    rows, token_ids: [M] int64. counts: [M] float32, how often each is in the answer; 0 if in the prompt alone.
    repetition (1: none), presence, frequency (0: none): [R] float32.
    """

    rows: Tensor
    token_ids: Tensor
    counts: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor


@dataclass(frozen=True, slots=True)
class SeenTable:
    """What was seen, as numbers that stay on the device; R rows, each of which has a place in the table or none.

    table: [N, V] int32: twice the token's number in the answer, and 1 more if it is in the prompt and counts there.
    places: [R] int64; -1: the row has no penalties. repetition, presence, frequency: as in SeenTokens.
    """

    table: Tensor
    places: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor


def penalise(logits: Tensor, seen: SeenTokens | SeenTable) -> None:
    """Lower, or raise, the logits [R, V] float32 of tokens that were seen, in place.

    Repetition (Keskar et al., 2019) of whatever was seen; presence and frequency (OpenAI) of what is in the answer.
    """
    if isinstance(seen, SeenTable):
        _penalise_all(logits, seen)
        return
    penalties = (column[seen.rows] for column in (seen.repetition, seen.presence, seen.frequency))
    place = (seen.rows, seen.token_ids)
    logits[place] = _penalised(logits[place], seen.counts, *penalties)


def _penalise_all(logits: Tensor, seen: SeenTable) -> None:
    entries = torch.where(seen.places[:, None] >= 0, seen.table[seen.places.clamp(min=0)], 0)
    penalties = (column[:, None] for column in (seen.repetition, seen.presence, seen.frequency))
    logits.copy_(torch.where(entries > 0, _penalised(logits, entries // 2, *penalties), logits))


def _penalised(values: Tensor, counts: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor) -> Tensor:
    """Logits of tokens that were seen, so many times in the answer."""
    values = torch.where(values > 0, values / repetition, values * repetition)
    return values - (frequency * counts + presence * (counts > 0))
