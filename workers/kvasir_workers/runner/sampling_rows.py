"""What the rows of a step ask for, as arrays that are kept until the batch's membership changes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_protocol.request import SamplingParams
from kvasir_workers.runner.history import AnswerHistory
from kvasir_workers.runner.noise import noise_at, noise_streams
from kvasir_workers.sequence import Sequence as TokenSequence

_NO_TOP_K = 2**31

_ROW = np.dtype(
    [
        ("stream", np.uint64),
        ("temperature", np.float32),
        ("top_k", np.int64),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("repetition", np.float32),
        ("presence", np.float32),
        ("frequency", np.float32),
        ("min_tokens", np.int64),
        ("is_random", np.bool_),
        ("is_filtered", np.bool_),
        ("is_penalised", np.bool_),
        ("is_scored", np.bool_),
        ("is_edited", np.bool_),
        ("has_history", np.bool_),
    ]
)


def _row_of(sequence: TokenSequence) -> tuple[object, ...]:
    sampling = sequence.request.sampling
    is_filtered = sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
    stream = noise_streams([sequence.request.seed], [sequence.request.choice_index])[0]
    is_penalised = sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
    penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    return (
        stream,
        max(sampling.temperature, 1e-6),
        sampling.top_k if sampling.top_k > 0 else _NO_TOP_K,
        # The running sum may round up to 1 before the last token: 1 switches the filter off all the same.
        sampling.top_p if sampling.top_p < 1 else np.inf,
        sampling.min_p,
        *penalties,
        # A grammar's rows are kept from ending early where their grammar is enforced.
        sampling.min_tokens if sequence.grammar is None else 0,
        sampling.temperature > 0 and not is_filtered,
        sampling.temperature > 0 and is_filtered,
        is_penalised,
        sampling.logprobs is not None,
        bool(sampling.logit_bias or sampling.allowed_token_ids or sampling.bad_word_token_ids),
        is_penalised or bool(sampling.bad_word_token_ids),
    )


@dataclass(frozen=True, slots=True)
class RandomRows:
    """Rows of one kind that are drawn at random. places, rows: [R] int64, the same; rows: None for all of the step."""

    places: NDArray[np.int64]
    rows: Tensor | None
    streams: NDArray[np.uint64]
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def noise(self, num_generated: NDArray[np.int64], device: torch.device) -> Tensor:
        """[R] float32 in [0, 1), for the token that comes next. num_generated: of all rows of the step."""
        positions = num_generated[self.places].astype(np.uint64)
        return torch.from_numpy(noise_at(self.streams, positions)).to(device)


@dataclass(frozen=True, slots=True)
class Edits:
    """Changes of the logits that are the same at every step, as flat pairs of row and token."""

    bias_rows: Tensor
    bias_ids: Tensor
    biases: Tensor
    allowed_only: Tensor
    allowed_rows: Tensor
    allowed_ids: Tensor
    bad_word_rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Whose next tokens a step samples, and how many tokens each answer has before. num_generated: [R] int64.

    The sequences themselves may know of one token less: the step before has said it to nobody but the sampler.
    """

    sequences: tuple[TokenSequence, ...]
    num_generated: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence]) -> "SampledRows":
        """Of sequences that know all their tokens."""
        return cls(tuple(sequences), np.array([s.num_generated for s in sequences], dtype=np.int64))


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """One membership of the batch: sequences[i] is row i. histories: of the rows that some parameter asks it of."""

    sequences: tuple[TokenSequence, ...]
    table: NDArray[np.void]
    plain: RandomRows
    filtered: RandomRows
    scored: tuple[int, ...]
    penalised: tuple[int, ...]
    early: tuple[int, ...]
    edits: Edits | None
    histories: dict[int, AnswerHistory] = field(repr=False)

    @classmethod
    def of(
        cls, sequences: tuple[TokenSequence, ...], device: torch.device, before: "SamplingRows | None" = None
    ) -> "SamplingRows":
        """What is known of the sequences that stayed is taken over from before."""
        table = row_table(sequences, before)
        penalised = tuple(np.flatnonzero(table["is_penalised"]).tolist())
        edited = np.flatnonzero(table["is_edited"]).tolist()
        return cls(
            sequences=sequences,
            table=table,
            plain=_random_rows(table, table["is_random"], device),
            filtered=_random_rows(table, table["is_filtered"], device),
            scored=tuple(np.flatnonzero(table["is_scored"]).tolist()),
            penalised=penalised,
            early=tuple(np.flatnonzero(table["min_tokens"] > 0).tolist()),
            edits=_edits(sequences, edited, device) if edited else None,
            histories=_histories(sequences, np.flatnonzero(table["has_history"]).tolist(), before),
        )

    def remember(self, token_ids: Tensor) -> None:
        """The step said these, row by row."""
        if self.histories:
            said = token_ids.tolist()
            for row, history in self.histories.items():
                history.add(said[row])


class KnownRows(Protocol):
    """Rows whose wishes were read already."""

    @property
    def sequences(self) -> tuple[TokenSequence, ...]: ...

    @property
    def table(self) -> NDArray[np.void]: ...


def row_table(sequences: tuple[TokenSequence, ...], before: KnownRows | None) -> NDArray[np.void]:
    """What each sequence asks for; of those that were there before it is taken over."""
    known = {id(sequence): row for row, sequence in enumerate(before.sequences)} if before is not None else {}
    places = [known.get(id(sequence), -1) for sequence in sequences]
    new = [row for row, place in enumerate(places) if place < 0]
    fresh = np.array([_row_of(sequences[row]) for row in new], dtype=_ROW)
    if before is None or len(new) == len(sequences):
        return fresh
    table: NDArray[np.void] = before.table[places]
    table[new] = fresh
    return table


def _random_rows(table: NDArray[np.void], chosen: NDArray[np.bool_], device: torch.device) -> RandomRows:
    rows = np.flatnonzero(chosen)
    part = table if len(rows) == len(table) else table[rows]

    def column(name: str) -> Tensor:
        return torch.from_numpy(part[name].copy()).to(device)

    return RandomRows(
        places=rows,
        rows=None if len(rows) == len(table) else torch.from_numpy(rows).to(device),
        streams=part["stream"].copy(),
        temperature=column("temperature"),
        top_k=column("top_k"),
        top_p=column("top_p"),
        min_p=column("min_p"),
    )


def _histories(
    sequences: Sequence[TokenSequence], rows: list[int], before: SamplingRows | None
) -> dict[int, AnswerHistory]:
    """A sequence that was not sampled in the step before knows all its tokens itself."""
    known = {before.sequences[row]: history for row, history in before.histories.items()} if before is not None else {}
    return {row: known.get(sequences[row]) or AnswerHistory(sequences[row]) for row in rows}


def _edits(sequences: Sequence[TokenSequence], rows: list[int], device: torch.device) -> Edits:
    params = {row: sequences[row].request.sampling for row in rows}
    biases = [(row, entry.token_id, entry.bias) for row in rows for entry in params[row].logit_bias]
    allowed = [(row, token_id) for row in rows for token_id in _distinct(params[row])]

    def ids(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Edits(
        bias_rows=ids([row for row, _, _ in biases]),
        bias_ids=ids([token_id for _, token_id, _ in biases]),
        biases=torch.tensor([bias for _, _, bias in biases], dtype=torch.float32, device=device),
        allowed_only=ids([row for row in rows if params[row].allowed_token_ids]),
        allowed_rows=ids([row for row, _ in allowed]),
        allowed_ids=ids([token_id for _, token_id in allowed]),
        bad_word_rows=tuple(row for row in rows if params[row].bad_word_token_ids),
    )


def _distinct(sampling: SamplingParams) -> list[int]:
    return list(dict.fromkeys(sampling.allowed_token_ids))
