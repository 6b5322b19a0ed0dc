"""Pages leave once it is known where to, whichever is known first."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from kvasir_protocol.ids import PageIndex, RequestId
from kvasir_protocol.messages import HandoverTicket
from kvasir_workers.kv.transfer.departures import Departure, Departures
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fakes import Clock, RecordingPush, make_request, make_ticket

TICKET = make_ticket(num_pages=3)
SEQUENCE = Sequence(make_request("r", range(12)), is_prefill_only=True)


@dataclass
class Side:
    """A prefill side that expects one request. left: what went to the ticket's place; stayed: pages given back."""

    clock: Clock = field(default_factory=Clock)
    push: RecordingPush = field(default_factory=RecordingPush)
    stayed: list[PageIndex] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.departures = Departures(self.push, self.stayed.extend, self.clock)
        self.departures.expect(RequestId("r"), ticket_within_s=2.0)

    def offer(self, first_page: int, *pages: int) -> None:
        self.departures.export(SEQUENCE, first_page, [PageIndex(page) for page in pages])

    def finish(self) -> None:
        self.departures.finish(SEQUENCE, (9,))

    def direct(self, ticket: HandoverTicket = TICKET) -> None:
        self.departures.direct(RequestId("r"), ticket)

    @property
    def left(self) -> list[tuple[object, ...]]:
        return [word for _, word in self.push.told]


@pytest.fixture
def side() -> Side:
    return Side()


def test_pages_wait_for_the_ticket(side: Side) -> None:
    side.offer(0, 7, 5)
    side.offer(2, 6)
    before = list(side.left)
    side.direct()
    assert (before, side.left) == ([], [("pages", 0, 7, 5, 6)])
    assert side.push.told[0][0] == Departure(RequestId("r"), TICKET)


def test_pages_leave_as_they_come_once_the_ticket_is_there(side: Side) -> None:
    side.direct()
    side.offer(0, 7, 5)
    side.offer(2, 6)
    side.finish()
    assert side.left == [("pages", 0, 7, 5), ("pages", 2, 6), ("end", 9, 0.0)]


def test_ticket_may_come_after_the_end(side: Side) -> None:
    side.offer(0, 7, 5, 6)
    side.finish()
    side.direct()
    assert side.left == [("pages", 0, 7, 5, 6), ("end", 9, 0.0)]
    assert side.stayed == []


@pytest.mark.parametrize("comes_first", [True, False])
def test_pages_that_the_other_side_holds_stay(side: Side, comes_first: bool) -> None:
    ticket = make_ticket(num_pages=1, first_page=2)
    if comes_first:
        side.direct(ticket)
    side.offer(0, 7)
    side.offer(1, 5, 6)
    if not comes_first:
        side.direct(ticket)
    assert side.left == [("pages", 2, 6)]
    assert side.stayed == [7, 5]


def test_answer_that_ends_here_cancels_what_was_to_leave(side: Side) -> None:
    side.direct()
    side.offer(0, 7)
    side.departures.cancel(SEQUENCE)
    assert side.left == [("pages", 0, 7), ("cancelled",)]


def test_answer_that_ends_before_its_ticket_gives_its_pages_back(side: Side) -> None:
    side.offer(0, 7)
    side.departures.cancel(SEQUENCE)
    side.direct()
    assert (side.left, side.stayed) == ([], [7])


def test_pages_without_a_ticket_in_time_stay(side: Side) -> None:
    side.offer(0, 7)
    side.finish()
    side.clock.now = 1.9
    side.departures.tick()
    before = list(side.stayed)
    side.clock.now = 2.0
    side.departures.tick()
    side.direct()
    assert (before, side.stayed, side.left) == ([], [7], [])


def test_pages_that_come_after_that_stay_too(side: Side) -> None:
    side.clock.now = 2.0
    side.departures.tick()
    side.offer(0, 7)
    side.finish()
    assert (side.stayed, side.left) == ([7], [])


def test_with_a_ticket_pages_are_waited_for_until_the_engine_ends(side: Side) -> None:
    side.direct()
    for page, now in enumerate((4.0, 80.0, 120.0)):
        side.clock.now = now
        side.departures.tick()
        side.offer(page, page)
    assert len(side.left) == 3


def test_end_is_told_with_its_own_time(side: Side) -> None:
    side.clock.now = 0.5
    side.finish()
    side.clock.now = 1.5
    side.direct()
    assert side.left == [("end", 9, 0.5)]


def test_abandoned_request_gives_its_pages_back_at_once(side: Side) -> None:
    side.offer(0, 7)
    side.finish()
    side.departures.abandon(RequestId("r"))
    assert side.stayed == [7]


def test_what_leaves_already_can_not_be_abandoned(side: Side) -> None:
    side.direct()
    side.offer(0, 7)
    side.departures.abandon(RequestId("r"))
    side.offer(1, 5)
    assert side.left == [("pages", 0, 7), ("pages", 1, 5)]


def test_second_ticket_changes_nothing(side: Side) -> None:
    side.direct()
    side.direct(make_ticket(num_pages=3, generation=2))
    side.offer(0, 7)
    assert [departure.ticket for departure, _ in side.push.told] == [TICKET]


def test_ticket_and_end_of_a_request_that_nobody_expects_harm_nobody(side: Side) -> None:
    side.departures.direct(RequestId("other"), TICKET)
    side.departures.abandon(RequestId("other"))
    side.departures.cancel(Sequence(make_request("other", range(4)), is_prefill_only=True))
    assert (side.left, side.stayed) == ([], [])


def end_with_ticket(side: Side) -> None:
    side.direct()
    side.finish()


def end_before_ticket(side: Side) -> None:
    side.finish()
    side.direct()


def end_abandoned(side: Side) -> None:
    side.finish()
    side.departures.abandon(RequestId("r"))


def end_after_being_abandoned(side: Side) -> None:
    side.departures.abandon(RequestId("r"))
    side.finish()


def cancel_abandoned(side: Side) -> None:
    side.departures.abandon(RequestId("r"))
    side.departures.cancel(SEQUENCE)


def forget(side: Side) -> None:
    side.departures.forget(RequestId("r"))


@pytest.mark.parametrize(
    "end", [end_with_ticket, end_before_ticket, end_abandoned, end_after_being_abandoned, cancel_abandoned, forget]
)
def test_nothing_is_kept_of_a_request_that_is_over(side: Side, end: Callable[[Side], None]) -> None:
    assert side.departures.expects(RequestId("r"))
    end(side)
    assert not side.departures.expects(RequestId("r"))


def test_abandoned_request_is_expected_until_the_engine_is_done_with_it(side: Side) -> None:
    side.departures.abandon(RequestId("r"))
    assert side.departures.expects(RequestId("r"))
