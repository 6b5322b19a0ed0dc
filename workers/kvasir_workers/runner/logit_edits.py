"""What the parameters change in the logits before the choice, in vLLM's order; all in place."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_workers.runner.sampling_rows import Edits, SamplingRows


def edit_logits(
    logits: Tensor, rows: SamplingRows, num_generated: NDArray[np.int64], eos_token_ids: frozenset[int]
) -> None:
    """Allowed tokens, bad words, early ends, biases, penalties. logits: [R, V] float32; num_generated: [R]."""
    if rows.edits is not None:
        _keep_allowed(logits, rows.edits)
        _forbid(logits, _bad_endings(rows, rows.edits))
    if rows.early:
        _forbid(logits, _early_ends(rows, num_generated, eos_token_ids))
    if rows.edits is not None and len(rows.edits.biases):
        logits.index_put_((rows.edits.bias_rows, rows.edits.bias_ids), rows.edits.biases, accumulate=True)
    if rows.penalised:
        _penalise(logits, rows)


def _forbid(logits: Tensor, pairs: Iterable[tuple[int, int]]) -> None:
    """pairs: row and token."""
    flat = torch.tensor(list(pairs), dtype=torch.int64, device=logits.device)
    if len(flat):
        logits[flat[:, 0], flat[:, 1]] = -torch.inf


def _keep_allowed(logits: Tensor, edits: Edits) -> None:
    if not len(edits.allowed_only):
        return
    kept = logits[edits.allowed_rows, edits.allowed_ids]
    logits[edits.allowed_only] = -torch.inf
    logits[edits.allowed_rows, edits.allowed_ids] = kept


def _bad_endings(rows: SamplingRows, edits: Edits) -> list[tuple[int, int]]:
    """The last token of each bad word whose other tokens were just generated."""
    return [
        (row, word[-1])
        for row in edits.bad_word_rows
        for word in rows.sequences[row].request.sampling.bad_word_token_ids
        if rows.histories[row].ends_with(word[:-1])
    ]


def _early_ends(
    rows: SamplingRows, num_generated: NDArray[np.int64], eos_token_ids: frozenset[int]
) -> list[tuple[int, int]]:
    """Tokens that would end an answer of less than min_tokens."""
    pairs: list[tuple[int, int]] = []
    for row in rows.early:
        sampling = rows.sequences[row].request.sampling
        if num_generated[row] < sampling.min_tokens:
            ends = {*(() if sampling.ignore_eos else eos_token_ids), *sampling.stop_token_ids}
            pairs += [(row, token_id) for token_id in ends]
    return pairs


def _penalise(logits: Tensor, rows: SamplingRows) -> None:
    """Repetition (Keskar et al., 2019) over prompt and answer; presence and frequency (OpenAI) over the answer.

    Only the logits of tokens that were seen are touched: [M] flat pairs of row and token over all rows.
    """
    counted = [rows.histories[row].counts for row in rows.penalised]
    lengths = [len(counts) for counts in counted]
    table = rows.table[list(rows.penalised)]

    def per_token(name: str) -> Tensor:
        return torch.from_numpy(np.repeat(table[name], lengths)).to(logits.device)

    row_ids = torch.from_numpy(np.repeat(np.array(rows.penalised), lengths)).to(logits.device)
    token_ids = torch.from_numpy(np.concatenate([counts.token_ids for counts in counted])).to(logits.device)
    numbers = torch.from_numpy(np.concatenate([counts.counts for counts in counted])).to(logits.device)
    values, repetition = logits[row_ids, token_ids], per_token("repetition")
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= per_token("frequency") * numbers + per_token("presence") * (numbers > 0)
    logits[row_ids, token_ids] = values
