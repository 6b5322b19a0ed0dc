"""A plan as the tensors that the decoder reads."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvasir_kernels.paged_cache import AttentionBatch
from kvasir_workers.scheduler import ScheduledSequence, StepPlan
from kvasir_workers.sequence import Sequence


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's inputs. token_ids, positions, slots: [T] int64; sample_rows: [R], the rows whose logits are wanted.

    sampled: the R sequences that those rows belong to.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    attention: AttentionBatch
    sample_rows: Tensor
    sampled: tuple[Sequence, ...]


def build_batch(plan: StepPlan, page_size: int, device: torch.device) -> StepBatch:
    """Lay the plan's new tokens one after the other, in the plan's order."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sample_rows: list[int] = []
    for entry in plan.entries:
        sequence, start = entry.sequence, entry.sequence.num_computed
        end = start + entry.num_new
        token_ids += sequence.token_ids[start:end]
        positions += range(start, end)
        slots += [sequence.pages[i // page_size] * page_size + i % page_size for i in range(start, end)]
        if entry.samples:
            sample_rows.append(len(token_ids) - 1)
    return StepBatch(
        token_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        slots=torch.tensor(slots, dtype=torch.int64, device=device),
        attention=_attention_batch(plan.entries, page_size, device),
        sample_rows=torch.tensor(sample_rows, dtype=torch.int64, device=device),
        sampled=tuple(entry.sequence for entry in plan.entries if entry.samples),
    )


def _attention_batch(entries: tuple[ScheduledSequence, ...], page_size: int, device: torch.device) -> AttentionBatch:
    context_lens = tuple(entry.sequence.num_computed + entry.num_new for entry in entries)
    num_pages = [-(-length // page_size) for length in context_lens]
    widest = max(num_pages)
    tables = [
        entry.sequence.pages[:count] + [0] * (widest - count) for entry, count in zip(entries, num_pages, strict=True)
    ]
    return AttentionBatch(
        query_lens=tuple(entry.num_new for entry in entries),
        context_lens=context_lens,
        page_tables=torch.tensor(tables, dtype=torch.int64, device=device),
        num_decodes=sum(entry.num_new == 1 for entry in entries),
    )
