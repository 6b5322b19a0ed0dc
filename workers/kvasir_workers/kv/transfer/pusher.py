"""The prefill side of a hand-over: a thread of its own, so that the engine never waits for a transfer.

export ... export finish        (from the engine, page after page as each chunk completes)
  |
  +-> BeginPush --PushGranted--> PushPages ... PushPages, Commit --> done
                --PushRefused--> done        (the other side has told the router)
CancelPush, or we can't go on: stop, say Quiet --> done
the engine cancels: stop --> done            (the router knows why, and aborts the reservation)
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import zmq

from kvasir_protocol.errors import RankLost
from kvasir_protocol.events import HandoverCounters
from kvasir_protocol.ids import Generation, PageIndex, RequestId
from kvasir_protocol.messages import (
    BeginPush,
    CancelPush,
    Commit,
    HandoverTicket,
    Message,
    PageLayout,
    PushGranted,
    PushPages,
    PushRefused,
    Quiet,
)
from kvasir_protocol.wire import encode
from kvasir_workers.kv.transfer.connections import Connections
from kvasir_workers.kv.transfer.page_content import layout_page_bytes
from kvasir_workers.kv.transfer.sealing import KEY_BYTES, PageSeal
from kvasir_workers.kv.transfer.writers import PageWriter, WriterFactory
from kvasir_workers.sequence import Sequence
from kvasir_workers.socket_thread import Rounds, SocketThread

_log = logging.getLogger(__name__)

_POLL_MS = 200
"""How often deadlines are looked at when nothing arrives."""

PushKey = tuple[str, Generation]
"""A reservation: the other side's endpoint and its generation."""


@dataclass(frozen=True, slots=True)
class _Grant:
    """Leave to write. seal: of contents for the address, where pages aren't written straight."""

    page_endpoint: str
    seal: PageSeal | None


@dataclass(slots=True)
class _Push:
    """One hand-over on its way. unsent: our pages, from the ticket's num_sent-th on."""

    ticket: HandoverTicket
    request_id: RequestId
    writer: PageWriter
    deadline: float
    unsent: deque[PageIndex] = field(default_factory=deque)
    num_sent: int = 0
    busy_since: float = 0.0
    emitted_token_ids: tuple[int, ...] | None = None
    finished_at: float = 0.0
    grant: _Grant | None = None


@dataclass(slots=True)
class _Totals:
    """As in HandoverCounters."""

    requests: int = 0
    bytes: dict[str, int] = field(default_factory=lambda: {"shared_memory": 0, "tcp": 0})
    hidden_bytes: int = 0
    push_s: float = 0.0
    exposed_s: float = 0.0


class PagePusher:
    """Implements the engine's PageExporter. release gives pages back to the engine (from this thread)."""

    def __init__(
        self,
        layout: PageLayout,
        writers: WriterFactory,
        secret: bytes,
        release: Callable[[list[PageIndex]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = layout
        self._page_bytes = layout_page_bytes(layout)
        self._writers = writers
        self._release = release
        self._clock = clock
        self._pushes: dict[PushKey, _Push] = {}
        self._totals = _Totals()
        self._peers = Connections(secret, clock, self._hear, self._go_on)
        rounds = Rounds(timeout_ms=lambda: _POLL_MS, on_round=self._drop_overdue, on_end=self._end_all)
        self._thread = SocketThread(self._peers.context, "page-pusher", rounds)
        self._peers.thread = self._thread

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """The thread runs: False before `start`, after `stop`, and when an error ended it."""
        return self._thread.is_alive

    def stop(self) -> None:
        """End the thread, if it runs, and let go of all sockets: a context with open ones could never be collected."""
        self._thread.stop()
        self._peers.context.term()

    def counters(self) -> HandoverCounters:
        return HandoverCounters(
            pushed_requests=self._totals.requests,
            pushed_bytes_shared_memory=self._totals.bytes["shared_memory"],
            pushed_bytes_tcp=self._totals.bytes["tcp"],
            hidden_bytes=self._totals.hidden_bytes,
            push_s=self._totals.push_s,
            exposed_s=self._totals.exposed_s,
        )

    # PageExporter: called by the engine's thread

    def export(self, sequence: Sequence, first_page: int, pages: Many[PageIndex]) -> None:
        ticket, request_id, batch = _ticket_of(sequence), sequence.request_id, list(pages)
        self._thread.post(lambda: self._add_batch(ticket, request_id, first_page, batch))

    def finish(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None:
        key = _key(_ticket_of(sequence))
        self._thread.post(lambda: self._set_finished(key, emitted_token_ids))

    def cancel(self, sequence: Sequence) -> None:
        """The router hears of this end from the engine.

        If the other side told it as well, a failure could overtake an answer that ends with its first token, and the
        prompt would be computed again. So Quiet waits until the other side asks: once the router, or else the
        deadline, ends the reservation.
        """
        key = _key(_ticket_of(sequence))
        self._thread.post(lambda: self._forget(key))

    # The thread

    def _end_all(self) -> None:
        for key in list(self._pushes):
            self._end(key, "the replica stops")
        self._peers.close_all()

    def _hear(self, endpoint: str, message: Message) -> None:
        match message:
            case PushGranted(generation=generation):
                if push := self._pushes.get((endpoint, generation)):
                    self._take_grant(push, message)
            case PushRefused(generation=generation, reason=reason):
                if (endpoint, generation) in self._pushes:
                    _log.warning("push to %s refused: %s", endpoint, reason)
                self._forget((endpoint, generation))
            case CancelPush(generation=generation):
                self._end((endpoint, generation), "cancelled by the decode side")
            case _:
                _log.warning("unexpected %s from %s dropped", type(message).__name__, endpoint)

    def _take_grant(self, push: _Push, message: PushGranted) -> None:
        if push.grant is not None:
            return  # a key seals one sequence of frames
        needs_seal = push.writer.label == "tcp"
        if needs_seal and len(message.page_key) != KEY_BYTES:
            self._end(_key(push.ticket), "the grant has no key to seal pages with")
            return
        push.grant = _Grant(message.page_endpoint, PageSeal(message.page_key) if needs_seal else None)
        self._advance(push)

    def _go_on(self, endpoint: str) -> None:
        """The other side has read contents. Who began first is first again."""
        for key in [key for key in self._pushes if key[0] == endpoint]:
            self._advance(self._pushes[key])

    def _add_batch(
        self, ticket: HandoverTicket, request_id: RequestId, first_page: int, pages: list[PageIndex]
    ) -> None:
        push = self._pushes.get(_key(ticket))
        if push is None and first_page == ticket.first_page:
            push = self._begin(ticket, request_id)
        if push is None:
            # It ended before its last page. Asking once more could take a late answer to the first question for one
            # to the second, and write into pages that belong to somebody else by now.
            self._release(pages)
            return
        num_known = push.num_sent + len(push.unsent)
        assert first_page - ticket.first_page == num_known, f"page {first_page} comes after {num_known} pages"
        if not push.unsent:
            push.busy_since = self._clock()
        push.unsent.extend(pages)
        if num_known + len(pages) > len(ticket.page_indices):
            self._end(_key(ticket), "the ticket has fewer pages than the prompt")
            return
        self._advance(push)

    def _begin(self, ticket: HandoverTicket, request_id: RequestId) -> _Push:
        writer = self._writers.writer_for(ticket)
        push = _Push(ticket, request_id, writer, deadline=self._clock() + ticket.deadline_s)
        self._pushes[_key(ticket)] = push
        self._peers.send(
            ticket.endpoint,
            BeginPush(
                request_id=request_id,
                generation=ticket.generation,
                layout=self._layout,
                process_id=os.getpid(),
                uses_shared_memory=writer.label == "shared_memory",
            ),
        )
        return push

    def _set_finished(self, key: PushKey, emitted_token_ids: tuple[int, ...]) -> None:
        if push := self._pushes.get(key):
            push.emitted_token_ids = emitted_token_ids
            push.finished_at = self._clock()
            self._advance(push)

    def _advance(self, push: _Push) -> None:
        """Send what there is, once the other side has agreed and as long as it has room."""
        if push.grant is None:
            return
        endpoint, seal = push.ticket.endpoint, push.grant.seal
        push.deadline = self._clock() + push.ticket.deadline_s
        most_pages = max(1, push.writer.chunk_bytes // self._page_bytes)
        while push.unsent and (seal is None or self._peers.has_room(endpoint)):
            pages = [push.unsent.popleft() for _ in range(min(most_pages, len(push.unsent)))]
            try:
                self._send_pages(push, push.grant, pages)
            except (zmq.ZMQError, RankLost) as error:
                self._release(pages)
                self._end(_key(push.ticket), f"pages can't be sent: {error}")
                return
            self._release(pages)
        if push.emitted_token_ids is not None and not push.unsent:
            emitted = push.emitted_token_ids
            self._peers.send(endpoint, Commit(generation=push.ticket.generation, emitted_token_ids=emitted))
            self._totals.requests += 1
            self._totals.exposed_s += self._clock() - push.finished_at
            self._forget(_key(push.ticket))

    def _send_pages(self, push: _Push, grant: _Grant, pages: list[PageIndex]) -> None:
        target = push.ticket.page_indices[push.num_sent : push.num_sent + len(pages)]
        content = push.writer.write(pages, target)
        message = PushPages(generation=push.ticket.generation, page_indices=target)
        if content is None or grant.seal is None:
            self._peers.send(push.ticket.endpoint, message)
        else:
            header = encode(message)
            sealed = grant.seal.seal(header, content)
            self._peers.send_pages(push.ticket.endpoint, grant.page_endpoint, header, sealed)
        push.num_sent += len(pages)
        if not push.unsent:
            self._totals.push_s += self._clock() - push.busy_since
        num_bytes = len(pages) * self._page_bytes
        self._totals.bytes[push.writer.label] += num_bytes
        if push.emitted_token_ids is None:
            self._totals.hidden_bytes += num_bytes

    def _drop_overdue(self) -> None:
        now = self._clock()
        for key in [key for key, push in self._pushes.items() if now >= push.deadline]:
            if key in self._pushes:
                self._end_overdue(key)
            if key[0] not in self._used_endpoints():
                self._peers.close(key[0])  # a peer that left us without an answer may be gone for good
        self._peers.close_idle(self._used_endpoints())

    def _end_overdue(self, overdue: PushKey) -> None:
        """With it end all that go the same way over TCP: contents and the word that they were read may both be lost
        there, and a window that nobody opens again would hold up every later push."""
        push, endpoint = self._pushes[overdue], overdue[0]
        _log.warning("push of %s gave up: no answer from %s", push.request_id, endpoint)
        self._end(overdue, "no answer within the deadline")
        if push.grant is not None and push.grant.seal is not None:
            for key in [key for key, other in self._pushes.items() if key[0] == endpoint and other.grant is not None]:
                self._end(key, "the way for page contents is given up")
            self._peers.drop_pages(endpoint)

    def _used_endpoints(self) -> set[str]:
        return {endpoint for endpoint, _ in self._pushes}

    def _end(self, key: PushKey, reason: str) -> None:
        """Write no more and say so; Quiet is owed even for a push that is unknown or done here."""
        if key in self._pushes or key[0] in self._peers:
            self._peers.send(key[0], Quiet(generation=key[1], reason=reason))
        self._forget(key)

    def _forget(self, key: PushKey) -> None:
        push = self._pushes.pop(key, None)
        if push is not None and push.unsent:
            self._release(list(push.unsent))


def _key(ticket: HandoverTicket) -> PushKey:
    return ticket.endpoint, ticket.generation


def _ticket_of(sequence: Sequence) -> HandoverTicket:
    assert sequence.ticket is not None, f"{sequence.request_id} has no ticket"
    return sequence.ticket
