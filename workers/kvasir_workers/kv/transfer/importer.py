"""The decode side of a hand-over: reservations, and who may write into their pages.

    open --BeginPush--> pushing --Commit and all pages there--> started
      |                    |
      | abort, deadline    | abort, deadline
      v                    v
    freed <------------ quarantined       (shared memory: until the writer says Quiet or is dead;
                                           else freed at once, since this process itself does the writing)

A writer asks before it writes, so an open reservation can be freed at once. Late messages are told apart by their
generation, also those that were meant for a replica that was here before. One thread owns all of this; pages are given
back through `PageDesk`.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from kvasir_protocol.errors import RankLost, WireError
from kvasir_protocol.events import HandoverCounters
from kvasir_protocol.ids import Generation, RequestId
from kvasir_protocol.messages import (
    BeginPush,
    CancelPush,
    Commit,
    HandoverFailed,
    Message,
    PushGranted,
    PushPages,
    PushRefused,
    Quiet,
)
from kvasir_protocol.request import GenerationRequest
from kvasir_protocol.wire import decode
from kvasir_workers.kv.transfer.page_content import layout_page_bytes
from kvasir_workers.kv.transfer.page_parts import PartedPages
from kvasir_workers.kv.transfer.page_stream import Landing
from kvasir_workers.kv.transfer.pieces import Pieces, with_room
from kvasir_workers.kv.transfer.process_identity import process_start
from kvasir_workers.kv.transfer.reservation import Peer, Reservation
from kvasir_workers.kv.transfer.sealing import KEY_BYTES, Opening, PageSeal, proof_of, sealed_size
from kvasir_workers.kv.transfer.writer_life import life_of
from kvasir_workers.sequence import Sequence

_log = logging.getLogger(__name__)


def _asks_for(reservation: Reservation, message: PushPages) -> bool:
    return bool(message.page_indices) and reservation.missing.issuperset(message.page_indices)


class PageDesk(Protocol):
    """The engine, seen from here."""

    def start_reserved(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None: ...

    def release_reserved(self, sequence: Sequence) -> None: ...


@dataclass(slots=True)
class _Counts:
    received_requests: int = 0
    failed_requests: int = 0


@dataclass(slots=True)
class PageImporter:
    """All reservations of one replica. send delivers a message to a peer; clock counts seconds.

    page_endpoint: where contents come in. is_sealed: they must be. meet: tells where a process group is to be had with
    a writer, each of whose operations may take so many seconds. is_shared: the pages are in shared memory, and tickets
    say where.
    """

    pages: PartedPages
    vocab_size: int
    desk: PageDesk
    send: Callable[[Peer, Message], None]
    clock: Callable[[], float]
    page_endpoint: str
    is_sealed: bool = True
    process_start: Callable[[int], int | None] = field(default=process_start)
    meet: Callable[[Peer, float], str] | None = None
    is_shared: bool = True
    _reservations: dict[Generation, Reservation] = field(default_factory=dict)
    _generation_of: dict[RequestId, Generation] = field(default_factory=dict)
    _last_generation: int = field(default_factory=lambda: secrets.randbits(48))
    _counts: _Counts = field(default_factory=_Counts)

    @property
    def page_bytes(self) -> int:
        return layout_page_bytes(self.pages.layout)

    def counters(self, pushed: HandoverCounters) -> HandoverCounters:
        """The push side's totals with this side's beside them."""
        return replace(
            pushed,
            received_requests=self._counts.received_requests,
            failed_requests=self._counts.failed_requests,
            quarantined_pages=self._num_quarantined_pages(),
        )

    def _num_quarantined_pages(self) -> int:
        held = list(self._reservations.values())  # another thread may ask
        return sum(len(reservation.sequence.pages) for reservation in held if reservation.state == "quarantined")

    def open(self, sequence: Sequence, router: Peer, patience_s: float) -> Reservation:
        """A reservation for a sequence whose pages the engine has set aside."""
        self._last_generation += 1
        first_page = sequence.num_published_pages
        reservation = Reservation(
            sequence=sequence,
            generation=Generation(self._last_generation),
            router=router,
            deadline=self.clock() + patience_s,
            patience_s=patience_s,
            missing=set(sequence.pages[first_page:]),
        )
        self._reservations[reservation.generation] = reservation
        self._generation_of[sequence.request_id] = reservation.generation
        return reservation

    # What the writer says

    def begin(self, writer: Peer, message: BeginPush) -> None:
        reservation = self._live(message.generation)
        if reservation is None or reservation.state != "open":
            self.send(writer, PushRefused(generation=message.generation, reason="no such reservation"))
            return
        if message.request_id != reservation.sequence.request_id:
            _log.warning("the pages reserved for %s were asked for by another", reservation.sequence.request_id)
            self.send(writer, PushRefused(generation=message.generation, reason="reserved for another request"))
            return
        if message.layout != self.pages.layout:
            reason = f"pages differ: pushed {message.layout}, expected {self.pages.layout}"
            self.send(writer, PushRefused(generation=message.generation, reason=reason))
            self._fail(reservation, reason)
            return
        if message.uses_shared_memory and not self.is_shared:
            self.send(writer, PushRefused(generation=message.generation, reason="pages are not in shared memory"))
            return
        reservation.state = "pushing"
        reservation.writer = writer
        self._extend(reservation)
        if message.uses_shared_memory:
            self._grant_memory(reservation, message)
            return
        if message.uses_process_group:
            self._grant_group(reservation, writer)
            return
        reservation.page_key = secrets.token_bytes(KEY_BYTES)
        is_sealed = self.is_sealed or message.is_sealed
        if is_sealed:
            reservation.seal = PageSeal(reservation.page_key)
        granted = PushGranted(
            generation=message.generation,
            page_endpoint=self.page_endpoint,
            page_key=reservation.page_key,
            is_sealed=is_sealed,
        )
        self.send(writer, granted)

    def _grant_memory(self, reservation: Reservation, message: BeginPush) -> None:
        """Refused to a writer that has ended since it asked: nobody would ever say that its pages are quiet."""
        writer, life = reservation.writer, life_of(message, self.process_start)
        if life is None and message.held_file:
            reason = f"the writer has ended, or {message.held_file!r} is not what it holds"
            self.send(writer, PushRefused(generation=message.generation, reason=reason))
            self._fail(reservation, reason, is_quiet=True)
            return
        reservation.writer_life = life
        self.send(writer, PushGranted(generation=message.generation))

    def _grant_group(self, reservation: Reservation, writer: Peer) -> None:
        reservation.uses_group = True
        try:
            meeting = self.meet(writer, reservation.patience_s) if self.meet else ""
        except (OSError, RuntimeError) as error:
            self._fail(reservation, f"no process group can be had: {error}")
            return
        self.send(writer, PushGranted(generation=reservation.generation, meeting=meeting))

    def take_pages(self, writer: Peer, message: PushPages) -> None:
        """Pages that the writer says to have written into shared memory."""
        reservation = self._pushed_by(writer, message.generation)
        if reservation is None:
            return
        if reservation.uses_group:
            self._fail(reservation, "the process group that its pages were to come through is gone")
            return
        if not (reservation.is_written_straight and _asks_for(reservation, message)):
            self._fail(reservation, "the writer told of pages that were not asked for")
            return
        self._note_there(reservation, message)

    # What comes through a process group (group_intake)

    def take_received(self, writer: Peer, message: PushPages, content: memoryview) -> None:
        reservation = self._pushed_by(writer, message.generation)
        if reservation is None or not reservation.uses_group:
            return
        if len(content) != self.page_bytes * len(message.page_indices) or not _asks_for(reservation, message):
            self._fail(reservation, "the writer sent pages that were not asked for, or of another size")
            return
        self._put(reservation, message, content)

    def lose_group(self, writer: Peer, reason: str) -> None:
        """What this writer was to send through its process group does not come any more."""
        for reservation in list(self._reservations.values()):
            if reservation.uses_group and reservation.writer == writer and reservation.missing:
                self._fail(reservation, f"the process group is broken: {reason}")

    # What comes over TCP (page_stream.PageTaker)

    def greet(self, generation: Generation, proof: bytes) -> None:
        reservation = self._live(generation)
        if reservation is None or not reservation.page_key or reservation.has_line:
            raise WireError("nobody awaits its contents")
        if not secrets.compare_digest(proof, proof_of(reservation.page_key)):
            raise WireError("it was not granted what it asks for")
        reservation.has_line = True

    def awaits_contents(self, generation: Generation) -> bool:
        reservation = self._live(generation)
        return reservation is not None and bool(reservation.missing)

    def land(self, generation: Generation, header: bytes, num_bytes: int) -> Landing:
        """Where contents go: to their pages if these are within reach, which are theirs as long as they are awaited."""
        reservation = self._live(generation)
        if reservation is None:
            raise WireError("its reservation has ended")
        message = decode(header)
        if not isinstance(message, PushPages) or message.generation != generation:
            raise WireError(f"contents follow a PushPages of their own generation, not {type(message).__name__}")
        content_bytes = self.page_bytes * len(message.page_indices)
        expected_bytes = sealed_size(content_bytes) if reservation.seal else content_bytes
        if num_bytes != expected_bytes or not _asks_for(reservation, message):
            self._fail(reservation, "the writer sent pages that were not asked for, or of another size")
            raise WireError("pages that were not asked for, or of another size")
        return self._landing(reservation, message, header)

    def _landing(self, reservation: Reservation, message: PushPages, header: bytes) -> Landing:
        seal, indices = reservation.seal, message.page_indices
        if seal is None and (places := self.pages.places(indices)):
            return Landing(message, places)
        if seal is not None and (contents := self.pages.contents(indices)) is not None:
            return Landing(message, (), Opening(seal, header, contents))
        num_bytes = self.page_bytes * len(indices)
        reservation.room = with_room(reservation.room, num_bytes)
        packed = memoryview(reservation.room)[:num_bytes]
        opening = None if seal is None else Opening(seal, header, Pieces([packed]))
        return Landing(message, [packed], opening, packed)

    def take(self, landing: Landing) -> None:
        """Raises WireError if a seal shows that they are not from the writer that was granted, or not the next."""
        reservation = self._live(landing.message.generation)
        if reservation is None:
            raise WireError("its reservation has ended")
        if landing.opening is not None and landing.opening.is_broken:
            self._fail(reservation, "pages came under a broken seal")
            raise WireError("a broken seal")
        if landing.packed is None:
            self._note_there(reservation, landing.message)
        else:
            self._put(reservation, landing.message, landing.packed)

    def _put(self, reservation: Reservation, message: PushPages, content: memoryview) -> None:
        try:
            self.pages.unpack(content, message.page_indices)
        except RankLost as error:
            self._fail(reservation, str(error))
        else:
            self._note_there(reservation, message)

    # What the writer says last

    def commit(self, writer: Peer, message: Commit) -> None:
        """The writer's last word; over TCP it may overtake pages."""
        reservation = self._pushed_by(writer, message.generation)
        if reservation is None:
            return
        if not self._can_go_on(reservation.sequence.request, message.emitted_token_ids):
            self._fail(reservation, "the writer emitted tokens after which the sequence can't go on")
        elif reservation.missing and reservation.is_written_straight:
            self._fail(reservation, f"committed with {len(reservation.missing)} pages missing")
        else:
            reservation.emitted_token_ids = message.emitted_token_ids
            self._start_if_whole(reservation)

    def _note_there(self, reservation: Reservation, message: PushPages) -> None:
        reservation.missing.difference_update(message.page_indices)
        self._extend(reservation)
        self._start_if_whole(reservation)

    def _start_if_whole(self, reservation: Reservation) -> None:
        if reservation.missing or reservation.emitted_token_ids is None:
            return
        self._forget(reservation)
        self._counts.received_requests += 1
        self.desk.start_reserved(reservation.sequence, reservation.emitted_token_ids)

    def _can_go_on(self, request: GenerationRequest, emitted_token_ids: tuple[int, ...]) -> bool:
        """There is a token to feed to the model, and room for one more."""
        num_emitted = len(request.emitted_token_ids) + len(emitted_token_ids)
        are_known = all(0 <= token_id < self.vocab_size for token_id in emitted_token_ids)
        return bool(emitted_token_ids) and are_known and num_emitted < request.max_tokens

    def quiet(self, writer: Peer, message: Quiet) -> None:
        """The writer stopped, by itself or because it was told to: nobody can write into the pages any more."""
        reservation = self._reservations.get(message.generation)
        if reservation is None or reservation.writer != writer:
            return
        if reservation.state == "quarantined":
            self._free(reservation)
        else:
            self._fail(reservation, message.reason, is_quiet=True)

    # What ends a reservation

    def abort(self, request_id: RequestId) -> bool:
        """The request is not wanted any more. False if no reservation of it waits."""
        reservation = self._live(self._generation_of.get(request_id, Generation(0)))
        if reservation is None:
            return False
        self._drop(reservation)
        return True

    def tick(self) -> None:
        """Look at the clock: deadlines that passed, writers that died."""
        now = self.clock()
        for reservation in list(self._reservations.values()):
            if reservation.generation not in self._reservations:
                continue  # its router was found gone when another reservation failed
            if reservation.state == "quarantined":
                if reservation.writer_life is not None and reservation.writer_life.has_ended():
                    self._free(reservation)
                elif now >= reservation.deadline:
                    self._ask_for_quiet(reservation)
            elif now >= reservation.deadline:
                self._fail(reservation, f"no pages for {reservation.patience_s:g} s")

    def _fail(self, reservation: Reservation, reason: str, *, is_quiet: bool = False) -> None:
        """The router is told to submit the request again; the pages come back when they are quiet."""
        _log.warning("hand-over of %s failed: %s", reservation.sequence.request_id, reason)
        self._counts.failed_requests += 1
        failed = HandoverFailed(
            request_id=reservation.sequence.request_id, generation=reservation.generation, reason=reason
        )
        router = reservation.router
        if is_quiet:
            self._free(reservation)
        else:
            self._drop(reservation)
        self.send(router, failed)

    def _drop(self, reservation: Reservation) -> None:
        if reservation.is_written_straight:
            reservation.state = "quarantined"
            self._unname(reservation)
            self._ask_for_quiet(reservation)
        else:
            self._free(reservation)

    def _ask_for_quiet(self, reservation: Reservation) -> None:
        """Until it is heard: while a connection is broken the question is lost, and so is the answer."""
        self._extend(reservation)
        self.send(reservation.writer, CancelPush(generation=reservation.generation))

    def _free(self, reservation: Reservation) -> None:
        self._forget(reservation)
        self.desk.release_reserved(reservation.sequence)

    def _forget(self, reservation: Reservation) -> None:
        del self._reservations[reservation.generation]
        self._unname(reservation)
        if reservation.writer_life is not None:
            reservation.writer_life.close()

    def _unname(self, reservation: Reservation) -> None:
        """The request id may belong to a later reservation already."""
        request_id = reservation.sequence.request_id
        if self._generation_of.get(request_id) == reservation.generation:
            del self._generation_of[request_id]

    def _live(self, generation: Generation) -> Reservation | None:
        reservation = self._reservations.get(generation)
        return None if reservation is None or reservation.state == "quarantined" else reservation

    def _pushed_by(self, writer: Peer, generation: Generation) -> Reservation | None:
        reservation = self._live(generation)
        return reservation if reservation and reservation.state == "pushing" and reservation.writer == writer else None

    def _extend(self, reservation: Reservation) -> None:
        reservation.deadline = self.clock() + reservation.patience_s
