"""What the rows of a step ask for, on the device: sent once, when other sequences come into the batch.

From step to step nothing is sent: what changes with a token, its position above all, the device knows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_kernels.sampling_dispatch import SamplingRules
from kvasir_workers.runner.device_copies import Array, upload
from kvasir_workers.runner.sampling_rows import row_table
from kvasir_workers.sequence import Sequence as TokenSequence

_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FixedEdits:
    """Changes of the logits that are the same at every step, as flat pairs of row and token; int64.

    biases: float32. early_limits: an end is forbidden while the answer has fewer tokens.
    """

    allowed_only: Tensor
    allowed_rows: Tensor
    allowed_ids: Tensor
    early_rows: Tensor
    early_ids: Tensor
    early_limits: Tensor
    bias_rows: Tensor
    bias_ids: Tensor
    biases: Tensor

    def forbid(self, logits: Tensor, num_generated: Tensor) -> None:
        """What is not allowed, and early ends. logits: [R, V], changed in place; num_generated: [R] int64."""
        if len(self.allowed_only):
            kept = logits[self.allowed_rows, self.allowed_ids]
            logits.index_fill_(0, self.allowed_only, -torch.inf)
            logits[self.allowed_rows, self.allowed_ids] = kept
        if len(self.early_rows):
            place = (self.early_rows, self.early_ids)
            is_early = num_generated[self.early_rows] < self.early_limits
            logits[place] = torch.where(is_early, -torch.inf, logits[place])

    def add_biases(self, logits: Tensor) -> None:
        if len(self.biases):
            logits.index_put_((self.bias_rows, self.bias_ids), self.biases, accumulate=True)


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """One membership of the batch: sequences[i] is row i.

    offsets: [R] int64, what a position is more than the number of the answer's tokens up to it. rules: but for their
    positions, which change with every token. scored: the rows that want log-probabilities, [.] int64; num_top: how many
    of the likeliest each wants. penalties: repetition, presence, frequency, [R] each. penalised, bad_word_rows: rows.
    """

    sequences: tuple[TokenSequence, ...]
    table: NDArray[np.void]
    is_any_random: bool
    offsets: Tensor
    rules: SamplingRules
    scored: Tensor
    num_top: tuple[int, ...]
    penalties: tuple[Tensor, Tensor, Tensor]
    penalised: tuple[int, ...]
    bad_word_rows: tuple[int, ...]
    edits: FixedEdits

    @classmethod
    def of(
        cls,
        sequences: tuple[TokenSequence, ...],
        eos_token_ids: frozenset[int],
        device: torch.device,
        before: "DeviceRows | None" = None,
    ) -> "DeviceRows":
        """What is known of the sequences that stayed is taken over from before."""
        table = row_table(sequences, before)
        is_random = table["is_random"] | table["is_filtered"]
        scored = np.flatnonzero(table["is_scored"])
        edits = _edits(sequences, table, eos_token_ids)
        offsets, scored_there, streams, top_k, temperature, top_p, min_p, *rest = upload(
            [
                np.array([sequence.num_prompt_tokens - 1 for sequence in sequences], dtype=np.int64),
                scored,
                table["stream"].copy().view(np.int64),
                np.minimum(table["top_k"], _MAX_INT32).astype(np.int32),
                np.where(is_random, table["temperature"], np.float32(0)),
                *(table[name].copy() for name in ("top_p", "min_p", "repetition", "presence", "frequency")),
                *edits,
            ],
            device,
        )
        repetition, presence, frequency, *edits_there = rest
        return cls(
            sequences=sequences,
            table=table,
            is_any_random=bool(is_random.any()),
            offsets=offsets,
            rules=SamplingRules(streams, offsets, temperature, top_k, top_p, min_p),
            scored=scored_there,
            num_top=tuple(sequences[row].request.sampling.logprobs or 0 for row in scored.tolist()),
            penalties=(repetition, presence, frequency),
            penalised=tuple(np.flatnonzero(table["is_penalised"]).tolist()),
            bad_word_rows=tuple(
                row for row, sequence in enumerate(sequences) if sequence.request.sampling.bad_word_token_ids
            ),
            edits=FixedEdits(*edits_there),
        )


def _edits(sequences: Sequence[TokenSequence], table: NDArray[np.void], eos: frozenset[int]) -> list[Array]:
    """The columns of FixedEdits, in its order."""
    params = {row: sequences[row].request.sampling for row in np.flatnonzero(table["is_edited"]).tolist()}
    allowed = {row: list(dict.fromkeys(sampling.allowed_token_ids)) for row, sampling in params.items()}
    early = np.flatnonzero(table["min_tokens"] > 0).tolist()
    ends = [(row, end, table["min_tokens"][row]) for row in early for end in _ends_of(sequences[row], eos)]
    biases = [(row, entry.token_id, entry.bias) for row, sampling in params.items() for entry in sampling.logit_bias]
    return [
        _int64(row for row, token_ids in allowed.items() if token_ids),
        _int64(row for row, token_ids in allowed.items() for _ in token_ids),
        _int64(token_id for token_ids in allowed.values() for token_id in token_ids),
        *(_int64(entry[column] for entry in ends) for column in range(3)),
        _int64(row for row, _, _ in biases),
        _int64(token_id for _, token_id, _ in biases),
        np.array([bias for _, _, bias in biases], dtype=np.float32),
    ]


def _ends_of(sequence: TokenSequence, eos_token_ids: frozenset[int]) -> list[int]:
    sampling = sequence.request.sampling
    return sorted({*(() if sampling.ignore_eos else eos_token_ids), *sampling.stop_token_ids})


def _int64(values: Iterable[int]) -> NDArray[np.int64]:
    return np.array(list(values), dtype=np.int64)
