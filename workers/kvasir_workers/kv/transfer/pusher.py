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
import secrets
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from threading import Thread

import zmq

from kvasir_protocol import sockets
from kvasir_protocol.errors import WireError
from kvasir_protocol.events import HandoverCounters
from kvasir_protocol.ids import Generation, PageIndex, RequestId
from kvasir_protocol.messages import (
    MAX_DEADLINE_S,
    BeginPush,
    CancelPush,
    Commit,
    HandoverTicket,
    Message,
    PageLayout,
    PushGranted,
    PushRefused,
    Quiet,
)
from kvasir_protocol.wire import decode, encode
from kvasir_workers.kv.transfer.page_content import layout_page_bytes
from kvasir_workers.kv.transfer.writers import PageWriter, WriterFactory
from kvasir_workers.mailbox import Mailbox
from kvasir_workers.sequence import Sequence

_log = logging.getLogger(__name__)

_POLL_MS = 200
"""How often deadlines are looked at when nothing arrives."""

_FAREWELL_MS = 200
"""Time for the last Quiet to leave: without it the other side keeps the pages in quarantine until we are dead."""

_IDLE_S = 2 * MAX_DEADLINE_S
"""A connection without a word for so long is closed: its replica may have left for good. Whoever still waits for our
Quiet has asked for it by then, since it asks once in each deadline."""

PushKey = tuple[str, Generation]
"""A reservation: the other side's endpoint and its generation."""


@dataclass(slots=True)
class _Push:
    """One hand-over on its way. batches: (the sequence's first page, our pages) that are still to be sent."""

    ticket: HandoverTicket
    request_id: RequestId
    writer: PageWriter
    deadline: float
    batches: deque[tuple[int, list[PageIndex]]] = field(default_factory=deque)
    emitted_token_ids: tuple[int, ...] | None = None
    is_granted: bool = False


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
        self._writers = writers
        self._secret = secret
        self._release = release
        self._clock = clock
        # After a broken connection the other side must take our Quiet for that of the same writer.
        self._name = b"pusher-" + secrets.token_hex(8).encode()
        self._pushes: dict[PushKey, _Push] = {}
        self._pushed_requests = 0
        self._pushed_bytes = {"shared_memory": 0, "tcp": 0}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._mailbox = Mailbox(self._context)
        self._peers: dict[str, zmq.Socket[bytes]] = {}
        self._last_word: dict[str, float] = {}
        self._poller = zmq.Poller()
        self._thread = Thread(target=self._run, name="page-pusher", daemon=True)
        self._is_stopping = False

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """The thread runs: False before `start`, after `stop`, and when an error ended it."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread, if it runs, and let go of all sockets: a context with open ones could never be collected."""
        if self._thread.is_alive():
            self._mailbox.post(self._set_stopping)
            self._thread.join()
        for socket in self._peers.values():
            socket.close(linger=_FAREWELL_MS)
        self._peers.clear()
        self._mailbox.close()
        self._context.term()

    def counters(self) -> HandoverCounters:
        return HandoverCounters(
            pushed_requests=self._pushed_requests,
            pushed_bytes_shared_memory=self._pushed_bytes["shared_memory"],
            pushed_bytes_tcp=self._pushed_bytes["tcp"],
        )

    # PageExporter: called by the engine's thread

    def export(self, sequence: Sequence, first_page: int, pages: Many[PageIndex]) -> None:
        ticket, request_id, batch = _ticket_of(sequence), sequence.request_id, list(pages)
        self._mailbox.post(lambda: self._add_batch(ticket, request_id, first_page, batch))

    def finish(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None:
        key = _key(_ticket_of(sequence))
        self._mailbox.post(lambda: self._set_finished(key, emitted_token_ids))

    def cancel(self, sequence: Sequence) -> None:
        """The router hears of this end from the engine.

        If the other side told it as well, a failure could overtake an answer that ends with its first token, and the
        prompt would be computed again. So Quiet waits until the other side asks: once the router, or else the
        deadline, ends the reservation.
        """
        key = _key(_ticket_of(sequence))
        self._mailbox.post(lambda: self._forget(key))

    # The thread

    def _run(self) -> None:
        self._poller.register(self._mailbox.socket, zmq.POLLIN)
        while not self._is_stopping:
            for socket, _ in self._poller.poll(_POLL_MS):
                if socket is self._mailbox.socket:
                    self._mailbox.run_posted()
                else:
                    self._receive(socket)
            self._drop_overdue()
        for key in list(self._pushes):
            self._end(key, "the replica stops")

    def _set_stopping(self) -> None:
        self._is_stopping = True

    def _receive(self, socket: "zmq.Socket[bytes]") -> None:
        endpoint = next(endpoint for endpoint, peer in self._peers.items() if peer is socket)
        self._last_word[endpoint] = self._clock()
        try:
            message = decode(socket.recv())
        except WireError as error:
            _log.warning("bad message from %s dropped: %s", endpoint, error)
            return
        match message:
            case PushGranted(generation=generation):
                if push := self._pushes.get((endpoint, generation)):
                    push.is_granted = True
                    self._advance(push)
            case PushRefused(generation=generation, reason=reason):
                if (endpoint, generation) in self._pushes:
                    _log.warning("push to %s refused: %s", endpoint, reason)
                self._forget((endpoint, generation))
            case CancelPush(generation=generation):
                self._end((endpoint, generation), "cancelled by the decode side")
            case _:
                _log.warning("unexpected %s from %s dropped", type(message).__name__, endpoint)

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
        push.batches.append((first_page, pages))
        self._advance(push)

    def _begin(self, ticket: HandoverTicket, request_id: RequestId) -> _Push:
        writer = self._writers.writer_for(ticket)
        push = _Push(ticket, request_id, writer, deadline=self._clock() + ticket.deadline_s)
        self._pushes[_key(ticket)] = push
        self._send(
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
            self._advance(push)

    def _advance(self, push: _Push) -> None:
        """Send what there is, once the other side has agreed."""
        if not push.is_granted:
            return
        push.deadline = self._clock() + push.ticket.deadline_s
        while push.batches:
            first_page, pages = push.batches.popleft()
            start = first_page - push.ticket.first_page
            target = push.ticket.page_indices[start : start + len(pages)]
            if len(target) < len(pages):
                push.batches.appendleft((first_page, pages))
                self._end(_key(push.ticket), "the ticket has fewer pages than the prompt")
                return
            for message in push.writer.write(pages, target):
                self._send(push.ticket.endpoint, message)
            self._pushed_bytes[push.writer.label] += len(pages) * layout_page_bytes(self._layout)
            self._release(pages)
        if push.emitted_token_ids is not None:
            self._send(
                push.ticket.endpoint,
                Commit(generation=push.ticket.generation, emitted_token_ids=push.emitted_token_ids),
            )
            self._pushed_requests += 1
            self._forget(_key(push.ticket))

    def _drop_overdue(self) -> None:
        now = self._clock()
        for key in [key for key, push in self._pushes.items() if now >= push.deadline]:
            _log.warning("push of %s gave up: no answer from %s", self._pushes[key].request_id, key[0])
            self._end(key, "no answer within the deadline")
            self._close_unused(key[0])
        for endpoint in [endpoint for endpoint in self._peers if now - self._last_word[endpoint] >= _IDLE_S]:
            self._close_unused(endpoint)

    def _close_unused(self, endpoint: str) -> None:
        """A peer that left us without an answer may be gone for good, and its socket would try for ever."""
        if endpoint not in self._peers or any(used == endpoint for used, _ in self._pushes):
            return
        del self._last_word[endpoint]
        socket = self._peers.pop(endpoint)
        self._poller.unregister(socket)
        socket.close(linger=_FAREWELL_MS)

    def _end(self, key: PushKey, reason: str) -> None:
        """Write no more and say so; Quiet is owed even for a push that is unknown or done here."""
        if key in self._pushes or key[0] in self._peers:
            self._send(key[0], Quiet(generation=key[1], reason=reason))
        self._forget(key)

    def _forget(self, key: PushKey) -> None:
        push = self._pushes.pop(key, None)
        if push is not None:
            for _, pages in push.batches:
                self._release(pages)

    def _send(self, endpoint: str, message: Message) -> None:
        try:
            self._peer(endpoint).send(encode(message), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # Its queue is full, or it is no address at all: a ticket is another's word.
            _log.warning("%s takes no %s: %s", endpoint, type(message).__name__, error.strerror)

    def _peer(self, endpoint: str) -> "zmq.Socket[bytes]":
        if endpoint not in self._peers:
            self._peers[endpoint] = sockets.connect_client(self._context, self._secret, endpoint, self._name)
            self._poller.register(self._peers[endpoint], zmq.POLLIN)
        self._last_word[endpoint] = self._clock()
        return self._peers[endpoint]


def _key(ticket: HandoverTicket) -> PushKey:
    return ticket.endpoint, ticket.generation


def _ticket_of(sequence: Sequence) -> HandoverTicket:
    assert sequence.ticket is not None, f"{sequence.request_id} has no ticket"
    return sequence.ticket
