"""Tells other processes what the prefix tree holds: a thread of its own, so that no engine step waits for it."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import zmq

from kvasir_protocol.errors import WireError
from kvasir_protocol.kv_events import (
    DUMP_REQUEST,
    END_SEQUENCE,
    AllBlocksCleared,
    KvEvent,
    KvEventBatch,
    encode_batch,
    parse_sequence,
    sequence_bytes,
)
from kvasir_workers.kv.event_log import Change, KvEventLog, events_of
from kvasir_workers.socket_thread import Rounds, SocketThread

_log = logging.getLogger(__name__)

_GATHER_S = 0.005
"""So long changes are gathered into one batch. A decode step takes as long; a router learns of pages in time for the
next turn of a chat."""

_POLL_MS = 1000

_BATCH_CHANGES = 1000
"""Pages per batch: some 100 kB."""

REPLAY_BYTES = 16 * 2**20
"""Batches that are kept for those who lost some; who lost more asks for a dump."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSockets:
    """Bound: a PUB for the batches, a ROUTER for replays and dumps."""

    publisher: zmq.Socket[bytes]
    replay: zmq.Socket[bytes]


class Replays:
    """The last batches, up to a number of bytes."""

    def __init__(self, capacity_bytes: int = REPLAY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._num_bytes = 0
        self._batches: deque[tuple[int, bytes]] = deque()

    def append(self, sequence_number: int, batch: bytes) -> None:
        self._batches.append((sequence_number, batch))
        self._num_bytes += len(batch)
        while self._num_bytes > self._capacity_bytes and len(self._batches) > 1:
            self._num_bytes -= len(self._batches.popleft()[1])

    def since(self, first: int) -> list[tuple[int, bytes]]:
        return [(number, batch) for number, batch in self._batches if number >= first]


class KvEventServer:
    """Publishes what is written to the log, and answers requests, from `start` to `stop`."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        sockets: EventSockets,
        log: KvEventLog,
        topic: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sockets = sockets
        self._log = log
        self._topic = topic.encode()
        self._clock = clock
        self._replays = Replays()
        self._next_number = 0
        self._gather_until: float | None = None
        rounds = Rounds(timeout_ms=self._timeout_ms, on_round=self._publish_gathered, on_end=self._close_sockets)
        self._thread = SocketThread(context, "kv-events", rounds)
        self._thread.register(sockets.replay, lambda: self._answer(sockets.replay.recv_multipart()))

    def start(self) -> None:
        # Whatever was told of an earlier life at this address is over.
        self._thread.post(lambda: self._publish_batch([AllBlocksCleared()]))
        self._log.bell = lambda: self._thread.post(self._note_change)
        self._thread.post(self._note_change)  # for what was written before the bell hung
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive

    def stop(self) -> None:
        self._thread.stop()

    def _note_change(self) -> None:
        if self._gather_until is None:
            self._gather_until = time.monotonic() + _GATHER_S

    def _publish_gathered(self) -> None:
        if self._gather_until is not None and time.monotonic() >= self._gather_until:
            self._publish_changes()

    def _close_sockets(self) -> None:
        self._sockets.publisher.close()
        self._sockets.replay.close()

    def _timeout_ms(self) -> int:
        if self._gather_until is None:
            return _POLL_MS
        return max(0, int((self._gather_until - time.monotonic()) * 1000) + 1)

    def _publish_changes(self) -> None:
        self._gather_until = None
        taken = self._log.take()
        self._publish(taken.changes, is_lossy=taken.is_lossy)

    def _publish(self, changes: list[Change], *, is_lossy: bool) -> None:
        for some in _chunks(changes):
            self._publish_batch(events_of(some))
        if is_lossy:
            _log.warning("more KV events than could be told: some were dropped, and readers will ask for a dump")
            self._next_number += 1
            self._publish_batch([])  # without a batch after it nobody would see the gap

    def _publish_batch(self, events: list[KvEvent]) -> None:
        batch = self._encode(events)
        self._replays.append(self._next_number, batch)
        self._sockets.publisher.send_multipart([self._topic, sequence_bytes(self._next_number), batch])
        self._next_number += 1

    def _encode(self, events: Iterable[KvEvent]) -> bytes:
        return encode_batch(KvEventBatch(timestamp=self._clock(), events=tuple(events), data_parallel_rank=0))

    def _answer(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 3 or frames[1]:
                raise WireError("a request is an empty frame, then a sequence number or `dump`")
            batches = self._dump() if frames[2] == DUMP_REQUEST else self._replays.since(parse_sequence(frames[2]))
        except WireError as error:
            _log.warning("bad request for KV events dropped: %s", error)
            return
        try:
            for number, batch in batches:
                self._send(frames[0], sequence_bytes(number), batch)
            self._send(frames[0], END_SEQUENCE, b"")
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            _log.warning("a reader of KV events went away or takes nothing")

    def _send(self, peer: bytes, number: bytes, batch: bytes) -> None:
        self._sockets.replay.send_multipart([peer, b"", number, batch], zmq.NOBLOCK)

    def _dump(self) -> list[tuple[int, bytes]]:
        """The tree at this moment, whose last change is published first: a dump is never behind its number."""
        taken = self._log.take(with_pages=True)
        self._publish(taken.changes, is_lossy=taken.is_lossy)
        changes = [Change(None, is_stored=False), *taken.pages]
        return [(self._next_number - 1, self._encode(events_of(some))) for some in _chunks(changes)]


def _chunks(changes: list[Change]) -> list[list[Change]]:
    return [changes[start : start + _BATCH_CHANGES] for start in range(0, len(changes), _BATCH_CHANGES)]
