"""The prefill side of a hand-over: a thread of its own, so that the engine never waits for a transfer.

export ... export finish        (from the engine by way of Departures, page after page as each chunk completes)
  |
  +-> BeginPush --PushGranted--> PushPages ... PushPages, Commit --> done
                --PushRefused--> done        (the other side has told the router)
CancelPush, or we can't go on: stop, say Quiet --> done
the engine cancels: stop --> done            (the router knows why, and aborts the reservation)
"""

import logging
import os
import time
from collections.abc import Callable
from collections.abc import Sequence as Many

from kvasir_protocol.errors import RankLost
from kvasir_protocol.events import HandoverCounters
from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import (
    BeginPush,
    CancelPush,
    Commit,
    Message,
    PageLayout,
    PushGranted,
    PushPages,
    PushRefused,
    Quiet,
)
from kvasir_protocol.wire import encode
from kvasir_workers.kv.transfer.connections import Connections
from kvasir_workers.kv.transfer.departures import Departure
from kvasir_workers.kv.transfer.group_line import GroupLine, PairGroups
from kvasir_workers.kv.transfer.page_content import layout_page_bytes
from kvasir_workers.kv.transfer.page_stream import PageLine
from kvasir_workers.kv.transfer.process_identity import own_start
from kvasir_workers.kv.transfer.push import Push, PushKey, PushTotals, Way, key_of
from kvasir_workers.kv.transfer.sealing import KEY_BYTES, PageSeal, proof_of, sealed_blocks, sealed_size
from kvasir_workers.kv.transfer.writers import ContentWriter, SharedMemoryWriter, WriterFactory
from kvasir_workers.socket_thread import Rounds, SocketThread

_log = logging.getLogger(__name__)

_POLL_MS = 200
"""How often deadlines are looked at when nothing arrives."""


class PagePusher:
    """Implements PagePush. release gives pages back to the engine (from this thread).

    is_sealed: contents that go over TCP must be. host: its own address, for process groups. held_file: as in BeginPush.
    """

    def __init__(
        self,
        layout: PageLayout,
        writers: WriterFactory,
        secret: bytes,
        release: Callable[[list[PageIndex]], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        is_sealed: bool = True,
        host: str = "127.0.0.1",
        held_file: str = "",
    ) -> None:
        self._held_file = held_file
        self._is_sealed = is_sealed
        self._layout = layout
        self._page_bytes = layout_page_bytes(layout)
        self._writers = writers
        self._release = release
        self._clock = clock
        self._pushes: dict[PushKey, Push] = {}
        self._totals = PushTotals()
        self._peers = Connections(secret, clock, self._hear)
        rounds = Rounds(timeout_ms=self._patience_ms, on_round=self._take_turns, on_end=self._end_all)
        self._thread = SocketThread(self._peers.context, "page-pusher", rounds)
        self._peers.thread = self._thread
        self._groups = PairGroups(host, writers.device, self._thread.post, self._flush_all)

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
            pushed_tokens=self._totals.tokens,
            pushed_bytes_shared_memory=self._totals.bytes["shared_memory"],
            pushed_bytes_process_group=self._totals.bytes["process_group"],
            pushed_bytes_tcp=self._totals.bytes["tcp"],
            hidden_bytes=self._totals.hidden_bytes,
            push_s=self._totals.push_s,
            exposed_s=self._totals.exposed_s,
        )

    # PagePush: any thread may call

    def export(self, departure: Departure, first_page: int, pages: Many[PageIndex]) -> None:
        batch = list(pages)
        self._thread.post(lambda: self._add_batch(departure, first_page, batch))

    def finish(self, departure: Departure, emitted_token_ids: tuple[int, ...], finished_at: float) -> None:
        key = key_of(departure.ticket)
        self._thread.post(lambda: self._set_finished(key, emitted_token_ids, finished_at))

    def cancel(self, departure: Departure) -> None:
        """The router hears of this end from the engine.

        If the other side told it as well, a failure could overtake an answer that ends with its first token, and the
        prompt would be computed again. So Quiet waits until the other side asks: once the router, or else the
        deadline, ends the reservation.
        """
        key = key_of(departure.ticket)
        self._thread.post(lambda: self._forget(key))

    # The thread

    def _end_all(self) -> None:
        for key in list(self._pushes):
            self._end(key, "the replica stops")
        self._groups.close()
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

    def _take_grant(self, push: Push, message: PushGranted) -> None:
        if push.is_granted:
            return  # a key seals one sequence of frames
        if isinstance(push.writer, ContentWriter):
            try:
                push.way = self._way(push, message)
            except (OSError, ValueError) as error:
                self._end(key_of(push.ticket), f"the grant is of no use: {error}", message.meeting)
                return
            self._flush(push, push.way)
        push.is_granted = True
        self._postpone(push)

    def _way(self, push: Push, message: PushGranted) -> Way:
        """Raises OSError or ValueError if there is none."""
        if push.writer.label == "process_group":
            ticket = push.ticket
            return Way(self._groups.line(message.meeting, ticket.generation, ticket.deadline_s, self._flush_all), None)
        if len(message.page_key) != KEY_BYTES:
            raise ValueError("it has no key")
        if self._is_sealed and not message.is_sealed:
            raise ValueError("it asks for contents without a seal")
        line = PageLine(message.page_endpoint, push.ticket.generation, proof_of(message.page_key))
        return Way(line, PageSeal(message.page_key) if message.is_sealed else None)

    def _add_batch(self, departure: Departure, first_page: int, pages: list[PageIndex]) -> None:
        ticket = departure.ticket
        push = self._pushes.get(key_of(ticket))
        if push is None and first_page == ticket.first_page:
            push = self._begin(departure)
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
            self._end(key_of(ticket), "the ticket has fewer pages than the prompt")
        else:
            self._postpone(push)

    def _begin(self, departure: Departure) -> Push:
        ticket = departure.ticket
        writer = self._writers.writer_for(ticket)
        push = Push(ticket, departure.request_id, writer, deadline=self._clock() + ticket.deadline_s)
        self._pushes[key_of(ticket)] = push
        self._peers.send(
            ticket.endpoint,
            BeginPush(
                request_id=departure.request_id,
                generation=ticket.generation,
                layout=self._layout,
                process_id=os.getpid(),
                process_start=own_start(),
                held_file=self._held_file,
                uses_shared_memory=writer.label == "shared_memory",
                is_sealed=self._is_sealed,
                uses_process_group=writer.label == "process_group",
            ),
        )
        return push

    def _set_finished(self, key: PushKey, emitted_token_ids: tuple[int, ...], finished_at: float) -> None:
        if push := self._pushes.get(key):
            push.emitted_token_ids = emitted_token_ids
            push.finished_at = finished_at
            self._postpone(push)

    def _postpone(self, push: Push) -> None:
        """It has come on: the deadline is for the next time. Until the other side has agreed, it is for that."""
        if push.is_granted:
            push.deadline = self._clock() + push.ticket.deadline_s

    # Turns: each push brings one chunk, so that none waits for all of another's

    def _patience_ms(self) -> int:
        return 0 if any(map(self._can_write, self._pushes.values())) else _POLL_MS

    def _take_turns(self) -> None:
        for push in list(self._pushes.values()):
            if self._can_write(push):
                self._write_chunk(push)
            self._commit_if_done(push)
        self._drop_overdue()

    def _can_write(self, push: Push) -> bool:
        is_free = push.is_granted and (push.way is None or push.way.line.is_idle)
        return is_free and bool(push.unsent)

    def _write_chunk(self, push: Push) -> None:
        num_pages = min(max(1, push.writer.chunk_bytes // self._page_bytes), len(push.unsent))
        pages = [push.unsent.popleft() for _ in range(num_pages)]
        target = push.ticket.page_indices[push.num_sent : push.num_sent + num_pages]
        message = PushPages(generation=push.ticket.generation, page_indices=target)
        push.num_sent += num_pages
        try:
            if isinstance(push.writer, SharedMemoryWriter):
                push.writer.write(pages, target)
                self._peers.send(push.ticket.endpoint, message)
                self._note_written(push, pages)
            else:
                self._put_on_line(push, push.writer, pages, message)
        except RankLost as error:
            self._release(pages)
            self._end(key_of(push.ticket), f"pages can't be read: {error}")

    def _put_on_line(self, push: Push, writer: ContentWriter, pages: list[PageIndex], message: PushPages) -> None:
        way = push.way
        assert way is not None, f"{push.request_id} was granted no way"
        if isinstance(way.line, GroupLine):
            content = writer.packed(pages)
            self._peers.send(push.ticket.endpoint, message)  # only now: the other side waits for what was announced
            way.line.put(content)
        else:
            header, num_bytes = encode(message), len(pages) * self._page_bytes
            if way.seal is None:
                way.line.put(header, num_bytes, [writer.places(pages)])
            else:
                blocks = ([block] for block in sealed_blocks(way.seal, header, writer.contents(pages)))
                way.line.put(header, sealed_size(num_bytes), blocks)
        way.pages_on_line = pages
        self._flush(push, way)

    def _flush_all(self) -> None:
        for push in list(self._pushes.values()):
            if push.way is not None:
                self._flush(push, push.way)

    def _flush(self, push: Push, way: Way) -> None:
        """Send on, and be woken once the system takes more; contents that it has taken are written."""
        try:
            if way.line.flush():
                self._postpone(push)
        except OSError as error:
            broken = way.line.meeting if isinstance(way.line, GroupLine) else ""
            self._end(key_of(push.ticket), f"pages can't be sent: {error.strerror}", broken)
            return
        self._watch(push, way)
        if way.line.is_idle and way.pages_on_line:
            pages, way.pages_on_line = way.pages_on_line, []
            self._note_written(push, pages)

    def _watch(self, push: Push, way: Way) -> None:
        if isinstance(way.line, GroupLine) or way.is_watched == (not way.line.is_idle):
            return  # a group's line tells by itself
        way.is_watched = not way.is_watched
        if way.is_watched:
            self._thread.register(way.line.socket, lambda: self._flush(push, way), to_write=True)
        else:
            self._thread.unregister(way.line.socket)

    def _note_written(self, push: Push, pages: list[PageIndex]) -> None:
        self._postpone(push)
        if not push.unsent:
            self._totals.push_s += self._clock() - push.busy_since
        self._totals.tokens += len(pages) * self._layout.page_size
        num_bytes = len(pages) * self._page_bytes
        self._totals.bytes[push.writer.label] += num_bytes
        if push.emitted_token_ids is None:
            self._totals.hidden_bytes += num_bytes
        self._release(pages)

    def _commit_if_done(self, push: Push) -> None:
        is_sent = push.is_granted and not push.unsent and (push.way is None or push.way.line.is_idle)
        key = key_of(push.ticket)
        if is_sent and push.emitted_token_ids is not None and key in self._pushes:
            commit = Commit(generation=push.ticket.generation, emitted_token_ids=push.emitted_token_ids)
            self._peers.send(push.ticket.endpoint, commit)
            self._totals.requests += 1
            self._totals.exposed_s += self._clock() - push.finished_at
            self._forget(key)

    def _drop_overdue(self) -> None:
        now = self._clock()
        for key, push in list(self._pushes.items()):
            if now >= push.deadline:
                _log.warning("push of %s gave up: no answer from %s", push.request_id, key[0])
                self._end(key, "no answer within the deadline")
                if key[0] not in self._used_endpoints():
                    self._peers.close(key[0])  # a peer that left us without an answer may be gone for good
        self._peers.close_idle(self._used_endpoints())

    def _used_endpoints(self) -> set[str]:
        return {endpoint for endpoint, _ in self._pushes}

    def _end(self, key: PushKey, reason: str, broken_meeting: str = "") -> None:
        """Write no more and say so; Quiet is owed even for a push that is unknown or done here."""
        if key in self._pushes or key[0] in self._peers:
            self._peers.send(key[0], Quiet(generation=key[1], reason=reason, broken_meeting=broken_meeting))
        self._forget(key)

    def _forget(self, key: PushKey) -> None:
        push = self._pushes.pop(key, None)
        if push is None:
            return
        unsent = list(push.unsent)
        if (way := push.way) is not None:
            if way.is_watched and isinstance(way.line, PageLine):
                self._thread.unregister(way.line.socket)
            way.line.close()
            unsent = way.pages_on_line + unsent
        if unsent:
            self._release(unsent)
