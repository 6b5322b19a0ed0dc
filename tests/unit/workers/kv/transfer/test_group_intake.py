"""Which of a writer's words let go of its group: no writer comes, so every group only waits for one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch

from kvasir_protocol.ids import Generation, PageIndex
from kvasir_protocol.messages import PushPages, Quiet
from kvasir_workers.kv.transfer.group_intake import GroupIntake
from kvasir_workers.kv.transfer.importer import PageImporter
from kvasir_workers.kv.transfer.page_parts import PartedPages
from kvasir_workers.sequence import Sequence
from tests.unit.workers.kv.transfer.layouts import make_layout, page_shape

WRITER = b"writer"
GENERATION = Generation(1)
PAGES = PushPages(generation=GENERATION, page_indices=(PageIndex(2),))


class NoDesk:
    """Nothing is reserved here, so nothing comes back."""

    def start_reserved(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None:
        raise AssertionError(sequence)

    def release_reserved(self, sequence: Sequence) -> None:
        raise AssertionError(sequence)


@dataclass
class Side:
    posted: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        pages = PartedPages.whole(make_layout(), torch.zeros(page_shape(4)))
        importer = PageImporter(pages, 100, NoDesk(), lambda peer, message: None, lambda: 0.0, "")
        self.intake = GroupIntake(importer, "127.0.0.1", self.posted.append)

    def meet(self) -> str:
        return self.intake.meet(WRITER, 0.1)


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    side.intake.close()


def quiet(broken_meeting: str) -> Quiet:
    return Quiet(generation=GENERATION, reason="gone", broken_meeting=broken_meeting)


def test_push_that_is_given_up_leaves_the_group_to_the_writers_others(side: Side) -> None:
    meeting = side.meet()
    side.intake.drop(WRITER, quiet(""))
    assert side.intake.expect(WRITER, PAGES)
    assert side.meet() == meeting


def test_group_that_the_writer_found_broken_is_dropped_and_the_next_is_another(side: Side) -> None:
    meeting = side.meet()
    side.intake.drop(WRITER, quiet(meeting))
    assert not side.intake.expect(WRITER, PAGES)
    later = side.meet()
    assert later != meeting
    side.intake.drop(WRITER, quiet(meeting))  # of another push of the first group
    assert side.meet() == later


def test_writer_without_a_group_may_say_that_it_is_broken(side: Side) -> None:
    side.intake.drop(WRITER, quiet("somewhere"))
    assert not side.intake.expect(WRITER, PAGES)
