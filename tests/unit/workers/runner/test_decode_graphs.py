"""The grid of graphs, what a replay is given, and that padding leaves no trace."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kvasir_kernels.paged_cache import PaddedDecodes
from kvasir_kernels.sampling_dispatch import DecodeInputs
from kvasir_workers.runner.batch import StepArrays
from kvasir_workers.runner.decode_graphs import DecodeGraphs, GraphLimits, graph_sizes
from kvasir_workers.runner.recorder import Rerun, Work
from tests.fakes.recorder import LoggedRecorder

V, PAGE_SIZE, MAX_PAGES = 32, 4, 6


class EchoModel:
    """Its logits tell what each row was given."""

    def __init__(self) -> None:
        self.seen: list[DecodeInputs] = []

    def compute(self, inputs: DecodeInputs, decodes: PaddedDecodes) -> Tensor:
        self.seen.append(inputs)
        rows = len(inputs.token_ids)
        assert len(decodes.context_lens) == len(decodes.page_tables) == rows
        logits = torch.zeros(rows, V)
        logits[:, :4] = torch.stack(
            [inputs.token_ids, inputs.positions, inputs.slots, decodes.context_lens.long()], dim=1
        ).float()
        logits[:, 4 : 4 + MAX_PAGES] = decodes.page_tables.float()
        return logits


def graphs(max_rows: int = 20, recorder: LoggedRecorder | None = None) -> DecodeGraphs:
    limits = GraphLimits(max_rows=max_rows, max_pages=MAX_PAGES, page_size=PAGE_SIZE, vocab_size=V)
    return DecodeGraphs(EchoModel().compute, limits, recorder or LoggedRecorder(), torch.device("cpu"))


def step_of(starts: list[int], tables: list[list[int]], coming: Sequence[tuple[int, int]] = ()) -> StepArrays:
    """Row i brings token 100 + i, unless it is still coming: (place, row of the step before)."""
    width = max(len(table) for table in tables)
    padded = np.array([table + [0] * (width - len(table)) for table in tables], dtype=np.int64)
    return StepArrays(
        token_ids=np.arange(100, 100 + len(starts)),
        coming=np.array([list(pair) for pair in coming], dtype=np.int64).reshape(-1, 2).T,
        starts=np.array(starts),
        counts=np.ones(len(starts), dtype=np.int64),
        samples=np.ones(len(starts), dtype=np.bool_),
        tables=padded,
    )


def test_grid_is_fine_to_128_and_then_coarse() -> None:
    fine = [1, 2, 4, *range(8, 129, 8)]
    assert graph_sizes(256) == (*fine, 192, 256)
    assert graph_sizes(300) == (*fine, 192, 256, 300)
    assert graph_sizes(128) == tuple(fine)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 4, 7, 9, 129])
def test_grid_ends_with_the_largest_step(max_rows: int) -> None:
    sizes = graph_sizes(max_rows)
    assert sizes[-1] == max_rows
    assert list(sizes) == sorted(set(sizes))


def test_every_size_is_recorded_before_anything_runs_the_largest_first() -> None:
    recorder = LoggedRecorder()
    graphs(20, recorder)
    assert recorder.recorded == [f"{size} decodes" for size in (20, 16, 8, 4, 2, 1)]
    assert recorder.replayed == []


@pytest.mark.parametrize(("num_rows", "size"), [(1, 1), (3, 4), (5, 8), (8, 8), (9, 16), (17, 20), (20, 20)])
def test_step_takes_the_smallest_graph_that_holds_it(num_rows: int, size: int) -> None:
    recorder = LoggedRecorder()
    logits = graphs(20, recorder).run(step_of([0] * num_rows, [[0]] * num_rows))
    assert recorder.replayed == [f"{size} decodes"]
    assert logits.shape == (num_rows, V)


def test_rows_get_their_tokens_places_and_pages() -> None:
    logits = graphs().run(step_of([5, 0, 11], [[7, 2], [9], [5, 6, 4]]))
    assert logits[:, :4].tolist() == [[100, 5, 2 * 4 + 1, 6], [101, 0, 9 * 4, 1], [102, 11, 4 * 4 + 3, 12]]
    assert [row[:n] for row, n in zip(logits[:, 4:10].tolist(), (2, 1, 3), strict=True)] == [[7, 2], [9], [5, 6, 4]]


@torch.inference_mode()
def test_coming_token_is_what_the_step_before_said() -> None:
    found = graphs()
    found.said[:3] = torch.tensor([31, 32, 33])
    logits = found.run(step_of([5, 6, 7], [[0, 1]] * 3, coming=[(0, 2), (2, 0)]))
    assert logits[:, 0].tolist() == [33, 101, 31]


def test_padding_has_no_slot_and_sees_nothing_whatever_ran_before() -> None:
    model = EchoModel()
    limits = GraphLimits(max_rows=8, max_pages=MAX_PAGES, page_size=PAGE_SIZE, vocab_size=V)
    found = DecodeGraphs(model.compute, limits, Rerun(), torch.device("cpu"))
    found.run(step_of([3] * 8, [[9]] * 8))
    found.run(step_of([3] * 5, [[9]] * 5))
    inputs = model.seen[-1]
    assert inputs.slots[5:].tolist() == [-1] * 3
    assert inputs.context_lens[5:].tolist() == inputs.positions[5:].tolist() == inputs.token_ids[5:].tolist() == [0] * 3


def test_nothing_is_written_while_recording() -> None:
    model = EchoModel()
    limits = GraphLimits(max_rows=4, max_pages=MAX_PAGES, page_size=PAGE_SIZE, vocab_size=V)
    slots = []

    class SlotRecorder(Rerun):
        def record(self, name: str, work: Work) -> Work:
            recorded = super().record(name, work)
            slots.extend(model.seen[-1].slots.tolist())
            return recorded

    DecodeGraphs(model.compute, limits, SlotRecorder(), torch.device("cpu"))
    assert set(slots) == {-1}


@pytest.mark.parametrize("seed", range(5))
def test_random_steps_one_after_the_other_get_what_they_brought(seed: int) -> None:
    draw, found = random.Random(seed), graphs()
    for _ in range(20):
        num_rows = draw.randint(1, 20)
        starts = [draw.randrange(PAGE_SIZE * MAX_PAGES) for _ in range(num_rows)]
        tables = [[draw.randrange(50) for _ in range(start // PAGE_SIZE + 1)] for start in starts]
        logits = found.run(step_of(starts, tables))
        assert logits[:, 1].tolist() == starts
        assert [row[: len(t)] for row, t in zip(logits[:, 4:10].tolist(), tables, strict=True)] == tables


def test_only_steps_of_one_token_that_all_sample_are_taken() -> None:
    found, step = graphs(3), step_of([0, 1, 2], [[0]] * 3)
    assert found.takes(step)
    assert not found.takes(step_of([0] * 4, [[0]] * 4))
    assert not found.takes(replace(step, samples=np.array([True, False, True])))
    assert not found.takes(replace(step, token_ids=np.arange(5), counts=np.array([1, 1, 3])))


def test_rank_that_only_helps_is_left_without_logits() -> None:
    limits = GraphLimits(max_rows=4, max_pages=MAX_PAGES, page_size=PAGE_SIZE, vocab_size=0)
    recorder = LoggedRecorder()
    found = DecodeGraphs(lambda inputs, decodes: None, limits, recorder, torch.device("cpu"))
    assert found.run(step_of([0] * 3, [[0]] * 3)).shape == (3, 0)
    assert recorder.replayed == ["4 decodes"]
