"""Prompts whose pages leave: which the engine has offered, and where to, whichever is known first.

The router asks both replicas at once, so that a prompt is computed while pages are set aside for it: the ticket may
come before the first page or after the last.
"""

import threading
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Protocol

from kvasir_protocol.ids import PageIndex, RequestId
from kvasir_protocol.messages import HandoverTicket
from kvasir_workers.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Departure:
    """A request whose pages leave, and where to."""

    request_id: RequestId
    ticket: HandoverTicket


class PagePush(Protocol):
    """Brings pages to where a ticket says; none of it waits."""

    def export(self, departure: Departure, first_page: int, pages: Many[PageIndex]) -> None:
        """Send these, the request's pages from first_page on, and release them."""
        ...

    def finish(self, departure: Departure, emitted_token_ids: tuple[int, ...], finished_at: float) -> None:
        """That was all: the other replica goes on after these tokens. finished_at: when the last was said, by the
        clock."""
        ...

    def cancel(self, departure: Departure) -> None:
        """Nothing more will come."""
        ...


@dataclass(slots=True)
class _Expected:
    """pages: those offered that the push has not got, the request's from first_page on. emitted_token_ids, finished_at:
    of the end, None until it came. is_abandoned: nobody will name a place."""

    request_id: RequestId
    deadline: float
    ticket: HandoverTicket | None = None
    first_page: int = 0
    pages: list[PageIndex] = field(default_factory=list)
    emitted_token_ids: tuple[int, ...] | None = None
    finished_at: float = 0.0
    is_abandoned: bool = False


class Departures:
    """The engine's PageExporter. Whoever receives the router's words tells it of requests and tickets; any thread may.

    Pages for which nobody names a place in time are given back to the engine by release.
    """

    def __init__(self, push: PagePush, release: Callable[[list[PageIndex]], None], clock: Callable[[], float]) -> None:
        self._push = push
        self._release = release
        self._clock = clock
        self._lock = threading.Lock()
        self._expected: dict[RequestId, _Expected] = {}

    def expects(self, request_id: RequestId) -> bool:
        """From `expect` on, until the engine is done with it and its pages have left or will not."""
        with self._lock:
            return request_id in self._expected

    def expect(self, request_id: RequestId, ticket_within_s: float) -> None:
        """The request, which is not expected yet, is about to be given to the engine."""
        with self._lock:
            self._expected[request_id] = _Expected(request_id, self._clock() + ticket_within_s)

    def direct(self, request_id: RequestId, ticket: HandoverTicket) -> None:
        """Where its pages go; too late (or for a second time), nothing happens, and the other side gives up in time."""
        with self._lock:
            expected = self._expected.get(request_id)
            if expected is not None and expected.ticket is None and not expected.is_abandoned:
                expected.ticket = ticket
                self._pass_on(expected, ticket)

    def abandon(self, request_id: RequestId) -> None:
        """Nobody will name a place; what leaves already goes on."""
        with self._lock:
            expected = self._expected.get(request_id)
            if expected is not None and expected.ticket is None:
                self._give_up(expected)

    def forget(self, request_id: RequestId) -> None:
        """The engine has not taken the request."""
        with self._lock:
            self._expected.pop(request_id, None)

    def tick(self) -> None:
        """Give up what was waited for long enough."""
        with self._lock:
            now = self._clock()
            for expected in list(self._expected.values()):
                if expected.ticket is None and now >= expected.deadline:
                    self._give_up(expected)

    # PageExporter: called by the engine's thread

    def export(self, sequence: Sequence, first_page: int, pages: Many[PageIndex]) -> None:
        with self._lock:
            expected = self._expected.get(sequence.request_id)
            if expected is None or expected.is_abandoned:
                self._release(list(pages))
                return
            assert first_page == expected.first_page + len(expected.pages), f"page {first_page} is out of turn"
            expected.pages.extend(pages)
            if expected.ticket is not None:
                self._pass_on(expected, expected.ticket)

    def finish(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None:
        with self._lock:
            expected = self._expected.get(sequence.request_id)
            if expected is None:
                return
            expected.emitted_token_ids, expected.finished_at = emitted_token_ids, self._clock()
            if expected.ticket is not None:
                self._pass_on(expected, expected.ticket)
            elif expected.is_abandoned:
                del self._expected[sequence.request_id]

    def cancel(self, sequence: Sequence) -> None:
        with self._lock:
            expected = self._expected.pop(sequence.request_id, None)
            if expected is not None:
                self._give_back(expected)
                if expected.ticket is not None:
                    self._push.cancel(Departure(sequence.request_id, expected.ticket))

    # With the lock held

    def _pass_on(self, expected: _Expected, ticket: HandoverTicket) -> None:
        departure = Departure(expected.request_id, ticket)
        self._keep_known(expected, ticket)
        if expected.pages:
            self._push.export(departure, expected.first_page, expected.pages)
            expected.first_page += len(expected.pages)
            expected.pages = []
        if expected.emitted_token_ids is not None:
            self._push.finish(departure, expected.emitted_token_ids, expected.finished_at)
            del self._expected[expected.request_id]

    def _keep_known(self, expected: _Expected, ticket: HandoverTicket) -> None:
        """Pages that the other side has stay here."""
        num_known = min(max(0, ticket.first_page - expected.first_page), len(expected.pages))
        known, expected.pages = expected.pages[:num_known], expected.pages[num_known:]
        expected.first_page += num_known
        if known:
            self._release(known)

    def _give_up(self, expected: _Expected) -> None:
        expected.is_abandoned = True
        self._give_back(expected)
        if expected.emitted_token_ids is not None:
            del self._expected[expected.request_id]

    def _give_back(self, expected: _Expected) -> None:
        if expected.pages:
            self._release(expected.pages)
            expected.pages = []
