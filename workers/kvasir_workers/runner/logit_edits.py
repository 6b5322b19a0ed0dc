"""What the parameters change in the logits before the choice, in vLLM's order; all in place."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_kernels.sampling_dispatch import SeenTokens, penalise
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
    """Only the logits of tokens that were seen are touched, those of all rows at once."""
    counted = [rows.histories[row].counts for row in rows.penalised]
    lengths = [len(counts) for counts in counted]

    def on_device(values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(logits.device)

    seen = SeenTokens(
        rows=on_device(np.repeat(np.array(rows.penalised), lengths)),
        token_ids=on_device(np.concatenate([counts.token_ids for counts in counted])),
        counts=on_device(np.concatenate([counts.counts for counts in counted])),
        repetition=on_device(rows.table["repetition"].copy()),
        presence=on_device(rows.table["presence"].copy()),
        frequency=on_device(rows.table["frequency"].copy()),
    )
    penalise(logits, seen)
