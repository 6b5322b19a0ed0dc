"""A plan as the tensors that the decoder reads."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_kernels.paged_cache import AttentionBatch
from kvasir_workers.runner.sampling_rows import SampledRows
from kvasir_workers.sequence import Sequence
from kvasir_workers.step_plan import ScheduledSequence, StepPlan


@dataclass(frozen=True, slots=True)
class ComingTokens:
    """Tokens that the step before samples: row rows[i] of it says what stands at places[i] of this one. [C] int64."""

    places: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's inputs. token_ids, positions, slots: [T] int64; sample_rows: [R], the rows whose logits are wanted.

    coming: where token_ids are still to be filled in. sampled: the R sequences that the sampled rows belong to.
    """

    token_ids: Tensor
    coming: ComingTokens | None
    positions: Tensor
    slots: Tensor
    attention: AttentionBatch
    sample_rows: Tensor
    sampled: SampledRows


class BatchBuilder:
    """Lays plans out, in the order in which they will run, without looking at what the device has yet to say."""

    def __init__(self, page_size: int, device: torch.device) -> None:
        self._page_size = page_size
        self._device = device
        self._rows_before: dict[Sequence, int] = {}

    def build(self, plan: StepPlan) -> StepBatch:
        """The plan's new tokens one after the other, in the plan's order."""
        entries = plan.entries
        starts = np.array([entry.start for entry in entries])
        counts = np.array([entry.num_new for entry in entries])
        ends, lengths = np.cumsum(counts), starts + counts
        positions = np.arange(ends[-1]) + np.repeat(lengths - ends, counts)
        tables = _page_tables(entries, -(-lengths // self._page_size))
        pages = tables[np.repeat(np.arange(len(entries)), counts), positions // self._page_size]
        sampling = np.array([entry.samples for entry in entries])
        token_ids, coming = self._token_ids(entries)
        return StepBatch(
            token_ids=self._tensor(token_ids),
            coming=coming,
            positions=self._tensor(positions),
            slots=self._tensor(pages * self._page_size + positions % self._page_size),
            attention=AttentionBatch(
                query_lens=tuple(counts.tolist()),
                context_lens=tuple(lengths.tolist()),
                page_tables=self._tensor(tables),
                num_decodes=int((counts == 1).sum()),
            ),
            sample_rows=self._tensor(ends[sampling] - 1),
            sampled=self._sampled(entries, lengths, sampling),
        )

    def _token_ids(self, entries: Iterable[ScheduledSequence]) -> tuple[NDArray[np.int64], ComingTokens | None]:
        token_ids: list[int] = []
        places: list[int] = []
        rows: list[int] = []
        for entry in entries:
            known, start = entry.sequence.token_ids, entry.start
            if entry.num_new > 1:
                token_ids += known[start : start + entry.num_new - 1]
            last = start + entry.num_new - 1
            if last < len(known):
                token_ids.append(known[last])
            else:
                places.append(len(token_ids))
                rows.append(self._rows_before[entry.sequence])
                token_ids.append(0)
        coming = ComingTokens(self._tensor(np.array(places)), self._tensor(np.array(rows))) if places else None
        return np.array(token_ids, dtype=np.int64), coming

    def _sampled(
        self, entries: Iterable[ScheduledSequence], lengths: NDArray[np.int64], sampling: NDArray[np.bool_]
    ) -> SampledRows:
        sequences = tuple([entry.sequence for entry in entries if entry.samples])
        self._rows_before = {sequence: row for row, sequence in enumerate(sequences)}
        num_prompt_tokens = np.array([sequence.num_prompt_tokens for sequence in sequences], dtype=np.int64)
        return SampledRows(sequences, lengths[sampling] - num_prompt_tokens)

    def _tensor(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _page_tables(entries: tuple[ScheduledSequence, ...], num_pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """[S, M]: the first num_pages pages of each sequence, padded with 0."""
    tables = np.zeros((len(entries), num_pages.max()), dtype=np.int64)
    rows = [entry.sequence.page_row()[:count] for entry, count in zip(entries, num_pages.tolist(), strict=True)]
    tables[np.arange(tables.shape[1]) < num_pages[:, None]] = np.concatenate(rows)
    return tables
