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

    def finish(self, departure: Departure, emitted_token_ids: tuple[int, ...]) -> None:
        """That was all: the other replica goes on after these tokens."""
        ...

    def cancel(self, departure: Departure) -> None:
        """Nothing more will come."""
        ...


@dataclass(slots=True)
class _Expected:
    """pages: those offered that the push has not got, the request's from first_page on. The end is either a finish or
    has not come."""

    request_id: RequestId
    deadline: float
    ticket: HandoverTicket | None = None
    first_page: int = 0
    pages: list[PageIndex] = field(default_factory=list)
    emitted_token_ids: tuple[int, ...] | None = None


class Departures:
    """The engine's PageExporter. Whoever receives the router's words tells it of requests and tickets; any thread may.

    release gives pages back to the engine. What nobody names a place for in time stays here.
    """

    def __init__(self, push: PagePush, release: Callable[[list[PageIndex]], None], clock: Callable[[], float]) -> None:
        self._push = push
        self._release = release
        self._clock = clock
        self._lock = threading.Lock()
        self._expected: dict[RequestId, _Expected] = {}

    def expect(self, request_id: RequestId, ticket_within_s: float) -> None:
        """The request is about to be given to the engine."""
        with self._lock:
            self._drop(request_id)
            self._expected[request_id] = _Expected(request_id, self._clock() + ticket_within_s)

    def direct(self, request_id: RequestId, ticket: HandoverTicket) -> None:
        """Where its pages go; too late (or for a second time), nothing happens, and the other side gives up in time."""
        with self._lock:
            expected = self._expected.get(request_id)
            if expected is not None and expected.ticket is None:
                expected.ticket = ticket
                self._pass_on(expected, ticket)

    def abandon(self, request_id: RequestId) -> None:
        """Nobody will name a place; what leaves already goes on."""
        with self._lock:
            expected = self._expected.get(request_id)
            if expected is not None and expected.ticket is None:
                self._drop(request_id)

    def tick(self) -> None:
        """Let go of what was waited for long enough."""
        with self._lock:
            now = self._clock()
            for request_id in [key for key, expected in self._expected.items() if now >= expected.deadline]:
                self._drop(request_id)

    # PageExporter: called by the engine's thread

    def export(self, sequence: Sequence, first_page: int, pages: Many[PageIndex]) -> None:
        with self._lock:
            expected = self._expected.get(sequence.request_id)
            if expected is None:
                self._release(list(pages))
                return
            assert first_page == expected.first_page + len(expected.pages), f"page {first_page} is out of turn"
            expected.pages.extend(pages)
            if expected.ticket is not None:
                self._pass_on(expected, expected.ticket)

    def finish(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None:
        with self._lock:
            expected = self._expected.get(sequence.request_id)
            if expected is not None:
                expected.emitted_token_ids = emitted_token_ids
                if expected.ticket is not None:
                    self._pass_on(expected, expected.ticket)

    def cancel(self, sequence: Sequence) -> None:
        with self._lock:
            ticket = self._drop(sequence.request_id)
            if ticket is not None:
                self._push.cancel(Departure(sequence.request_id, ticket))

    # With the lock held

    def _pass_on(self, expected: _Expected, ticket: HandoverTicket) -> None:
        departure = Departure(expected.request_id, ticket)
        expected.deadline = self._clock() + ticket.deadline_s
        self._keep_known(expected, ticket)
        if expected.pages:
            self._push.export(departure, expected.first_page, expected.pages)
            expected.first_page += len(expected.pages)
            expected.pages = []
        if expected.emitted_token_ids is not None:
            self._push.finish(departure, expected.emitted_token_ids)
            del self._expected[expected.request_id]

    def _keep_known(self, expected: _Expected, ticket: HandoverTicket) -> None:
        """Pages that the other side has stay here."""
        num_known = min(max(0, ticket.first_page - expected.first_page), len(expected.pages))
        known, expected.pages = expected.pages[:num_known], expected.pages[num_known:]
        expected.first_page += num_known
        if known:
            self._release(known)

    def _drop(self, request_id: RequestId) -> HandoverTicket | None:
        """Its ticket, if it had one."""
        expected = self._expected.pop(request_id, None)
        if expected is None:
            return None
        if expected.pages:
            self._release(expected.pages)
        return expected.ticket
