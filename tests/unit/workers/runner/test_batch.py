"""A plan laid out as tensors."""

import torch

from kvasir_protocol.ids import PageIndex
from kvasir_workers.runner.batch import BatchBuilder, StepBatch, sampled_rows
from kvasir_workers.sequence import Sequence
from kvasir_workers.step_plan import ScheduledSequence, StepPlan
from tests.unit.workers.fakes import make_request


def entry(tokens: range, pages: list[int], num_computed: int, num_new: int) -> ScheduledSequence:
    sequence = Sequence(make_request(f"r{tokens.start}", tokens))
    sequence.pages = [PageIndex(page) for page in pages]
    sequence.num_computed = num_computed
    return ScheduledSequence(sequence, num_computed, num_new, samples=num_computed + num_new == len(tokens))


def plan() -> StepPlan:
    """A decode, a middle chunk and a last chunk, with pages of 4."""
    entries = (
        entry(range(10, 16), [7, 2], 5, 1),
        entry(range(20, 40), [9, 0, 4], 3, 6),
        entry(range(50, 54), [5], 2, 2),
    )
    return StepPlan(entries)


def batch() -> StepBatch:
    return BatchBuilder(4, torch.device("cpu")).build(plan())


def test_tokens_follow_the_plans_order() -> None:
    assert batch().token_ids.tolist() == [15, 23, 24, 25, 26, 27, 28, 52, 53]


def test_positions_count_within_each_sequence() -> None:
    assert batch().positions.tolist() == [5, 3, 4, 5, 6, 7, 8, 2, 3]


def test_slots_lie_in_the_sequences_own_pages() -> None:
    assert batch().slots.tolist() == [9, 39, 0, 1, 2, 3, 16, 22, 23]


def test_only_sequences_that_reach_their_end_are_sampled() -> None:
    assert batch().sample_rows.tolist() == [0, 8]
    assert [sequence.request_id for sequence in sampled_rows(plan()).sequences] == ["r10", "r50"]


def test_attention_sees_what_is_computed_after_the_step() -> None:
    attention = batch().attention
    assert (attention.query_lens, attention.context_lens, attention.num_decodes) == ((1, 6, 2), (6, 9, 4), 1)
    assert attention.page_tables.tolist() == [[7, 2, 0], [9, 0, 4], [5, 0, 0]]
