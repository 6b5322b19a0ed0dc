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
    values, repetition = logits[seen.rows, seen.token_ids], seen.repetition[seen.rows]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= seen.frequency[seen.rows] * seen.counts + seen.presence[seen.rows] * (seen.counts > 0)
    logits[seen.rows, seen.token_ids] = values


def _penalise_all(logits: Tensor, seen: SeenTable) -> None:
    entries = torch.where(seen.places[:, None] >= 0, seen.table[seen.places.clamp(min=0)], 0)
    repetition, counts = seen.repetition[:, None], entries // 2
    values = torch.where(logits > 0, logits / repetition, logits * repetition)
    values = values - (seen.frequency[:, None] * counts + seen.presence[:, None] * (counts > 0))
    logits.copy_(torch.where(entries > 0, values, logits))
