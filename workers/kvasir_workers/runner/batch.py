"""A plan as the tensors that the decoder reads."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_kernels.paged_cache import AttentionBatch
from kvasir_workers.runner.sampling_rows import SampledRows
from kvasir_workers.scheduler import ScheduledSequence, StepPlan
from kvasir_workers.sequence import Sequence


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
        ends = np.cumsum(counts)
        positions = np.arange(ends[-1]) + np.repeat(starts - ends + counts, counts)
        tables = _page_tables(entries, starts + counts, self._page_size)
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
                context_lens=tuple((starts + counts).tolist()),
                page_tables=self._tensor(tables),
                num_decodes=int((counts == 1).sum()),
            ),
            sample_rows=self._tensor(ends[sampling] - 1),
            sampled=self._sampled(entry for entry in entries if entry.samples),
        )

    def _token_ids(self, entries: Iterable[ScheduledSequence]) -> tuple[NDArray[np.int64], ComingTokens | None]:
        token_ids: list[int] = []
        places: list[int] = []
        rows: list[int] = []
        for entry in entries:
            known = entry.sequence.token_ids
            token_ids += known[entry.start : entry.end]
            if entry.end > len(known):
                places.append(len(token_ids))
                rows.append(self._rows_before[entry.sequence])
                token_ids.append(0)
        coming = ComingTokens(self._tensor(np.array(places)), self._tensor(np.array(rows))) if places else None
        return np.array(token_ids, dtype=np.int64), coming

    def _sampled(self, entries: Iterable[ScheduledSequence]) -> SampledRows:
        numbers = {entry.sequence: entry.num_generated for entry in entries}
        self._rows_before = {sequence: row for row, sequence in enumerate(numbers)}
        return SampledRows(tuple(numbers), np.array(list(numbers.values()), dtype=np.int64))

    def _tensor(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _page_tables(
    entries: tuple[ScheduledSequence, ...], lengths: NDArray[np.int64], page_size: int
) -> NDArray[np.int64]:
    """[S, M]: the pages of each sequence that its first lengths tokens lie in, padded with 0."""
    num_pages = -(-lengths // page_size)
    tables = np.zeros((len(entries), num_pages.max()), dtype=np.int64)
    for table, entry, count in zip(tables, entries, num_pages.tolist(), strict=True):
        table[:count] = entry.sequence.page_row()[:count]
    return tables
