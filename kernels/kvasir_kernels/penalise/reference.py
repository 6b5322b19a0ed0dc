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


def penalise(logits: Tensor, seen: SeenTokens) -> None:
    """Lower, or raise, the logits [R, V] float32 of tokens that were seen, in place.

    Repetition (Keskar et al., 2019) of whatever was seen; presence and frequency (OpenAI) of what is in the answer.
    """
    values, repetition = logits[seen.rows, seen.token_ids], seen.repetition[seen.rows]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= seen.frequency[seen.rows] * seen.counts + seen.presence[seen.rows] * (seen.counts > 0)
    logits[seen.rows, seen.token_ids] = values
