"""A plan as plain numbers, and those as the tensors that the decoder reads."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_kernels.paged_cache import AttentionBatch
from kvasir_workers.runner.device_copies import upload
from kvasir_workers.runner.sampling_rows import SampledRows
from kvasir_workers.sequence import Sequence
from kvasir_workers.step_plan import ScheduledSequence, StepPlan

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepArrays:
    """One step in numbers: all that computing it takes.

    token_ids: [T] of all sequences, one after the other; where the step before is to say what stands there, 0.
    coming: [2, C], such a place, and the row of the step before. starts, counts: [S], which of its tokens a sequence
    brings. samples: [S]. tables: [S, M], each sequence's pages, padded with 0.
    """

    token_ids: Numbers
    coming: Numbers
    starts: Numbers
    counts: Numbers
    samples: NDArray[np.bool_]
    tables: Numbers


@dataclass(frozen=True, slots=True)
class ComingTokens:
    """Tokens that the step before samples: row rows[i] of it says what stands at places[i] of this one. [C] int64."""

    places: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's inputs. token_ids, positions, slots: [T] int64; sample_rows: [R], the rows whose logits are wanted.

    coming: where token_ids are still to be filled in.
    """

    token_ids: Tensor
    coming: ComingTokens | None
    positions: Tensor
    slots: Tensor
    attention: AttentionBatch
    sample_rows: Tensor


class BatchBuilder:
    """Lays plans out, in the order in which they will run, without looking at what the device has yet to say."""

    def __init__(self, page_size: int, device: torch.device) -> None:
        self._page_size = page_size
        self._device = device
        self._rows_before: dict[Sequence, int] = {}

    def build(self, plan: StepPlan) -> StepBatch:
        """The plan's new tokens one after the other, in the plan's order."""
        return lay_out(self.arrays(plan), self._page_size, self._device)

    def arrays(self, plan: StepPlan) -> StepArrays:
        """The same, before it is worked out where each token stands."""
        entries = plan.entries
        starts = np.array([entry.start for entry in entries])
        counts = np.array([entry.num_new for entry in entries])
        token_ids, coming = self._token_ids(entries)
        self._rows_before = {sequence: row for row, sequence in enumerate(sampled_sequences(plan))}
        return StepArrays(
            token_ids=token_ids,
            coming=coming,
            starts=starts,
            counts=counts,
            samples=np.array([entry.samples for entry in entries]),
            tables=_page_tables(entries, -(-(starts + counts) // self._page_size)),
        )

    def _token_ids(self, entries: Iterable[ScheduledSequence]) -> tuple[Numbers, Numbers]:
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
        return np.array(token_ids, dtype=np.int64), np.array([places, rows], dtype=np.int64)


def lay_out(step: StepArrays, page_size: int, device: torch.device) -> StepBatch:
    """Where each token stands: its position, its slot, and what it sees."""
    starts, counts, num_sequences = step.starts, step.counts, len(step.counts)
    lengths = starts + counts
    if len(step.token_ids) == num_sequences:  # one token of each: most steps, and the shortest
        positions, rows, sample_rows = starts, np.arange(num_sequences), np.flatnonzero(step.samples)
    else:
        ends = np.cumsum(counts)
        positions = np.arange(ends[-1]) + np.repeat(lengths - ends, counts)
        rows, sample_rows = np.repeat(np.arange(num_sequences), counts), ends[step.samples] - 1
    in_page = positions % page_size
    pages = step.tables[rows, (positions - in_page) // page_size]
    slots = pages * page_size + in_page
    token_ids, positions_there, slots_there, tables, rows_there, *coming = upload(
        [step.token_ids, positions, slots, step.tables, sample_rows, *(step.coming if step.coming.size else ())], device
    )
    return StepBatch(
        token_ids=token_ids,
        coming=ComingTokens(*coming) if coming else None,
        positions=positions_there,
        slots=slots_there,
        attention=AttentionBatch(
            query_lens=tuple(counts.tolist()),
            context_lens=tuple(lengths.tolist()),
            page_tables=tables,
            num_decodes=int((counts == 1).sum()),
        ),
        sample_rows=rows_there,
    )


def sampled_rows(plan: StepPlan) -> SampledRows:
    """Whose next tokens the plan's step samples, row by row."""
    num_generated = [
        entry.start + entry.num_new - entry.sequence.num_prompt_tokens for entry in plan.entries if entry.samples
    ]
    return SampledRows(sampled_sequences(plan), np.array(num_generated, dtype=np.int64))


def sampled_sequences(plan: StepPlan) -> tuple[Sequence, ...]:
    """Those whose next tokens the plan's step samples, row by row."""
    return tuple([entry.sequence for entry in plan.entries if entry.samples])


def _page_tables(entries: tuple[ScheduledSequence, ...], num_pages: Numbers) -> Numbers:
    """[S, M]: the first num_pages pages of each sequence, padded with 0."""
    if len(entries) == 1:
        return entries[0].sequence.page_row()[None, : num_pages[0]].copy()
    tables = np.zeros((len(entries), num_pages.max()), dtype=np.int64)
    rows = [entry.sequence.page_row()[:count] for entry, count in zip(entries, num_pages.tolist(), strict=True)]
    tables[np.arange(tables.shape[1]) < num_pages[:, None]] = np.concatenate(rows)
    return tables
