"""Which tokens each penalised sequence has seen, counted on the device: the host may not know the last one yet."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kvasir_kernels.sampling_dispatch import SeenTable, penalise
from kvasir_workers.runner.device_copies import upload
from kvasir_workers.runner.device_rows import DeviceRows
from kvasir_workers.sequence import Sequence as TokenSequence


class SeenLedger:
    """A row of a table [N, V] for each penalised sequence, from when it comes into the batch until it leaves.

    A sequence that was not sampled in the step before knows all its tokens itself: they are sent then.
    """

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        """The table takes its memory when the first sequence needs it."""
        self._shape = (max_rows, vocab_size)
        self._device = device
        self._table: Tensor | None = None
        self._places: dict[TokenSequence, int] = {}
        self._rows: DeviceRows | None = None
        self._seen: SeenTable | None = None
        self._penalised = self._bases = torch.empty(0, dtype=torch.int64, device=device)
        self._twos = torch.empty(0, dtype=torch.int32, device=device)

    def penalise(self, logits: Tensor, rows: DeviceRows) -> None:
        """logits: [R, V] float32, changed in place."""
        if rows is not self._rows:
            self._enter(rows)
        if self._seen is not None:
            penalise(logits, self._seen)

    def remember(self, token_ids: Tensor) -> None:
        """The step said these, row by row: of the rows that were penalised last."""
        if self._seen is not None:
            entries = self._bases + token_ids[self._penalised]
            self._seen.table.view(-1).index_add_(0, entries, self._twos)

    def _enter(self, rows: DeviceRows) -> None:
        self._rows = rows
        sequences = [rows.sequences[row] for row in rows.penalised]
        known = {sequence: self._places[sequence] for sequence in sequences if sequence in self._places}
        taken = set(known.values())
        free = (place for place in range(self._shape[0]) if place not in taken)
        new = [(sequence, next(free)) for sequence in sequences if sequence not in known]
        self._places = known | dict(new)
        if not sequences:
            self._seen = None
            return
        if self._table is None:
            self._table = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        if new:
            self._load(self._table, new)
        self._point_at(self._table, rows)

    def _load(self, table: Tensor, new: Sequence[tuple[TokenSequence, int]]) -> None:
        """Write the tokens of sequences into their rows, which may hold another's."""
        entries, values = [], []
        for sequence, place in new:
            token_ids, entry_values = _seen_tokens(sequence)
            entries.append(token_ids + place * self._shape[1])
            values.append(entry_values)
        places = np.array([place for _, place in new], dtype=np.int64)
        cleared, where, what = upload([places, np.concatenate(entries), np.concatenate(values)], self._device)
        table.index_fill_(0, cleared, 0)
        table.view(-1).index_copy_(0, where, what)

    def _point_at(self, table: Tensor, rows: DeviceRows) -> None:
        """Tell each row of the step its row of the table."""
        places = np.full(len(rows.sequences), -1, dtype=np.int64)
        penalised = np.array(rows.penalised, dtype=np.int64)
        places[penalised] = [self._places[rows.sequences[row]] for row in rows.penalised]
        bases = places[penalised] * self._shape[1]
        there, self._penalised, self._bases = upload([places, penalised, bases], self._device)
        self._twos = torch.full((len(penalised),), 2, dtype=torch.int32, device=self._device)
        self._seen = SeenTable(table, there, *rows.penalties)


def _seen_tokens(sequence: TokenSequence) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and what SeenTable has for each. The prompt's count where there is a penalty for repetition."""
    num_prompt = sequence.num_prompt_tokens
    token_ids, counts = np.unique(np.array(sequence.token_ids[num_prompt:], dtype=np.int64), return_counts=True)
    if sequence.request.sampling.repetition_penalty == 1.0:
        return token_ids, (2 * counts).astype(np.int32)
    prompt = np.unique(np.array(sequence.token_ids[:num_prompt], dtype=np.int64))
    every = np.union1d(token_ids, prompt)
    values = np.isin(every, prompt).astype(np.int32)
    values[np.searchsorted(every, token_ids)] += 2 * counts.astype(np.int32)
    return every, values
