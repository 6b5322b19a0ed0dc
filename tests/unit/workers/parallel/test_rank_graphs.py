"""Graphs of a gang are recorded by all ranks or by none."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
import torch

from kvasir_protocol.errors import ConfigError
from kvasir_workers.parallel.collectives import Collectives, Meeting
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.rank_graphs import GangRecorder, all_use_graphs
from kvasir_workers.parallel.torch_groups import memory_store
from kvasir_workers.runner.recorder import Work

T = TypeVar("T")
SHAPE = GangShape(tensor_parallel_size=2)


@dataclass
class ScriptedRecorder:
    """Fails where it is told to, and knows how far it came."""

    fails_at: str = ""
    done: list[str] = field(default_factory=list)

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what == self.fails_at:
            raise ValueError(f"no room for {what}\nand a long story")

    def rehearse(self, work: Work) -> None:
        self._do("rehearsal")

    def capture(self, name: str, work: Work) -> Work:
        self._do(name)
        return work


def nothing() -> None:
    """A step."""


def on_both(act: Callable[[Collectives], T]) -> list[T]:
    """What each rank returns."""
    meeting = Meeting(store=memory_store(), deadline_s=20.0, start_s=20.0)

    def run(rank: int) -> T:
        collectives = Collectives(RankPlace(SHAPE, rank), meeting, torch.device("cpu"))
        try:
            return act(collectives)
        finally:
            collectives.muster("over")
            collectives.close()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def record(recorders: list[ScriptedRecorder], names: list[str]) -> list[str]:
    """What each rank fails with, if it does."""

    def act(collectives: Collectives) -> str:
        gang = GangRecorder(recorders[collectives.place.rank], collectives)
        try:
            for name in names:
                assert gang.record(name, nothing) is nothing
        except ConfigError as error:
            return str(error)
        return ""

    return on_both(act)


def test_each_graph_is_rehearsed_by_all_before_any_rank_records_it() -> None:
    recorders = [ScriptedRecorder(), ScriptedRecorder()]
    assert record(recorders, ["2 decodes", "1 decodes"]) == ["", ""]
    assert [recorder.done for recorder in recorders] == [["rehearsal", "2 decodes", "rehearsal", "1 decodes"]] * 2


@pytest.mark.parametrize(
    ("fails_at", "what", "done"),
    [
        ("rehearsal", "a rehearsal of 2 decodes", ["rehearsal"]),
        ("2 decodes", "a graph of 2 decodes", ["rehearsal", "2 decodes"]),
    ],
)
def test_rank_that_cannot_record_fails_the_gang_and_says_what_to_do(fails_at: str, what: str, done: list[str]) -> None:
    recorders = [ScriptedRecorder(), ScriptedRecorder(fails_at)]
    failure = f"{what} failed (rank 1: no room for {fails_at}); do without graphs: --enforce-eager"
    assert record(recorders, ["2 decodes", "1 decodes"]) == [failure] * 2
    assert [recorder.done for recorder in recorders] == [done] * 2


@pytest.mark.parametrize(("able", "records"), [((True, True), True), ((False, False), False), ((True, False), False)])
def test_graphs_are_recorded_if_all_ranks_can(able: tuple[bool, bool], records: bool) -> None:
    assert on_both(lambda ranks: all_use_graphs(ranks, is_able=able[ranks.place.rank])) == [records] * 2


def test_rank_for_whose_sake_nobody_records_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        on_both(lambda ranks: all_use_graphs(ranks, is_able=ranks.place.rank == 0))
        on_both(lambda ranks: all_use_graphs(ranks, is_able=False))
    assert caplog.messages == ["no rank records its steps, since ranks [1] compute operation by operation"]
