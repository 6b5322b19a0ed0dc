"""Who waits for whom."""

from kvasir_protocol.ids import RequestId
from kvasir_workers.kv.in_flight import InFlightPages
from tests.unit.workers.kv.offload.pages import name_of

NAMES = [name_of(number) for number in range(6)]
A, B = RequestId("a"), RequestId("b")


def test_few_pages_that_are_computed_are_not_worth_awaiting() -> None:
    pages = InFlightPages()
    pages.announce(A, NAMES[:2])
    assert pages.last_worth_awaiting(NAMES, 3) is None
    pages.announce(A, NAMES[:3])
    assert pages.last_worth_awaiting(NAMES, 3) == NAMES[2]


def test_pages_that_are_restored_are_always_worth_awaiting() -> None:
    pages = InFlightPages()
    pages.announce(A, NAMES[:3], num_next=2)
    assert pages.last_worth_awaiting(NAMES, 4) == NAMES[1]
    assert pages.last_worth_awaiting(NAMES[1:], 4) == NAMES[1]
    assert pages.last_worth_awaiting(NAMES[2:], 4) is None


def test_nobody_waits_for_restored_pages_that_have_come_or_never_will() -> None:
    pages = InFlightPages()
    pages.announce(A, NAMES[:2], num_next=2)
    pages.finish(A, NAMES[0])
    assert pages.last_worth_awaiting(NAMES, 4) is None
    assert pages.last_worth_awaiting(NAMES[1:], 4) == NAMES[1]
    pages.forget(A)
    pages.announce(B, NAMES[:2])
    assert pages.last_worth_awaiting(NAMES[1:], 4) is None
