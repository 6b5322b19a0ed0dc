"""The prefill side of a hand-over against a decode side that the test plays, over a real socket."""

import os
import queue
import select
import socket
from collections.abc import Iterator
from collections.abc import Sequence as Many
from typing import Any, TypeVar

import pytest
import torch
import zmq
from zmq.utils.monitor import recv_monitor_message

from kvasir_protocol.errors import RankLost
from kvasir_protocol.ids import Generation, PageIndex, RequestId
from kvasir_protocol.messages import (
    BeginPush,
    CancelPush,
    Commit,
    HandoverTicket,
    Hello,
    Message,
    PushGranted,
    PushPages,
    PushRefused,
    Quiet,
)
from kvasir_protocol.sockets import bind_server, start_gatekeeper
from kvasir_protocol.wire import decode, encode
from kvasir_workers.kv.page_memory import SHARED_MEMORY, SharedSegment
from kvasir_workers.kv.transfer.departures import Departure
from kvasir_workers.kv.transfer.page_content import layout_page_bytes, pack_pages
from kvasir_workers.kv.transfer.page_intake import listen_for_pages
from kvasir_workers.kv.transfer.page_parts import PartedPages
from kvasir_workers.kv.transfer.page_stream import HELLO, LENGTHS
from kvasir_workers.kv.transfer.pair_group import DECODE_SIDE, PairGroup, PairMeeting, PairSeat
from kvasir_workers.kv.transfer.pieces import Pieces
from kvasir_workers.kv.transfer.pusher import PagePusher
from kvasir_workers.kv.transfer.sealing import KEY_BYTES, Opening, PageSeal, proof_of
from kvasir_workers.kv.transfer.writers import WriterFactory
from kvasir_workers.parallel.torch_groups import host_store
from tests.unit.workers.fakes import Clock, make_ticket
from tests.unit.workers.kv.transfer.layouts import make_layout, page_shape, random_pages, whole_segment

SECRET = b"s" * 32
DEADLINE_MS = 10_000
SILENCE_MS = 400
"""Twice as long as the pusher sleeps between two looks at the clock."""
PAGES = random_pages(8)
PAGE_BYTES = layout_page_bytes(make_layout())
KEY = b"k" * KEY_BYTES
NAME = f"kvasir-test-pusher-{os.getpid()}"
M = TypeVar("M")


class Contents:
    """A connection over which pages come, read to its hello; seal: as the writer was granted, if any."""

    def __init__(self, connection: socket.socket, seal: PageSeal | None) -> None:
        self._connection = connection
        self._seal = seal
        connection.settimeout(DEADLINE_MS / 1000)
        self.generation, self.proof = HELLO.unpack(self._read(HELLO.size))

    def expect_pages(self) -> tuple[tuple[int, ...], bytes]:
        """What the next pages are, and what they hold."""
        num_header_bytes, num_bytes = LENGTHS.unpack(self._read(LENGTHS.size))
        header, content = self._read(num_header_bytes), memoryview(self._read(num_bytes))
        message = decode(header)
        assert isinstance(message, PushPages)
        if self._seal is None:
            return message.page_indices, bytes(content)
        opened = memoryview(bytearray(len(message.page_indices) * PAGE_BYTES))
        opening = Opening(self._seal, header, Pieces([opened]))
        while num_wanted := opening.num_wanted:
            opening.open(content[:num_wanted])
            content = content[num_wanted:]
        assert not opening.is_broken, "the seal is broken"
        return message.page_indices, bytes(opened)

    def is_closed(self) -> bool:
        """By the other side, whatever came before that."""
        while self._connection.recv(65536):
            pass
        return True

    def has_nothing(self) -> bool:
        readable, _, _ = select.select([self._connection], [], [], 0)
        return not readable

    def close(self) -> None:
        self._connection.close()

    def _read(self, num_bytes: int) -> bytes:
        found = bytearray()
        while len(found) < num_bytes:
            part = self._connection.recv(num_bytes - len(found))
            assert part, "the connection for contents was closed"
            found += part
        return bytes(found)


class DecodeSide:
    """Listens, and says what the test tells it to."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.gatekeeper = start_gatekeeper(self.context, SECRET)
        self.socket, self.endpoint = bind_server(self.context, SECRET, "127.0.0.1", 0)
        self.listener, self.page_endpoint = listen_for_pages("127.0.0.1")
        self.listener.settimeout(DEADLINE_MS / 1000)
        self.contents: list[Contents] = []
        self.disconnections = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.peer = b""

    def expect(self, kind: type[M]) -> M:
        assert self.socket.poll(DEADLINE_MS), f"no {kind.__name__} came"
        self.peer, frame = self.socket.recv_multipart()
        message = decode(frame)
        assert isinstance(message, kind), f"expected {kind.__name__}, got {message}"
        return message

    def grants(self, generation: int = 1, *, is_sealed: bool = True) -> Contents:
        """Leave to send contents over a connection, which is opened for them."""
        granted = PushGranted(
            generation=Generation(generation), page_endpoint=self.page_endpoint, page_key=KEY, is_sealed=is_sealed
        )
        self.says(granted)
        self.contents.append(Contents(self.listener.accept()[0], PageSeal(KEY) if is_sealed else None))
        return self.contents[-1]

    def expect_pages(self) -> tuple[tuple[int, ...], bytes]:
        """Those that come next over the latest connection."""
        return self.contents[-1].expect_pages()

    def says(self, message: Message) -> None:
        self.socket.send_multipart([self.peer, encode(message)])

    def says_raw(self, frame: bytes) -> None:
        self.socket.send_multipart([self.peer, frame])

    def hears_nothing(self) -> bool:
        return not self.socket.poll(SILENCE_MS) and all(contents.has_nothing() for contents in self.contents)

    def is_visited(self) -> bool:
        """Somebody wants to send contents."""
        readable, _, _ = select.select([self.listener], [], [], 0)
        return bool(readable)

    def expect_left(self) -> None:
        """The prefill side has closed its connection."""
        assert self.disconnections.poll(DEADLINE_MS), "the connection stays open"
        recv_monitor_message(self.disconnections)

    def close(self) -> None:
        for contents in self.contents:
            contents.close()
        self.listener.close()
        self.gatekeeper.stop()
        self.context.destroy(linger=0)


class LostPages(PartedPages):
    """The rank that holds them is gone."""

    def pack(self, indices: Many[PageIndex], room: bytearray | None = None) -> memoryview:
        raise RankLost("rank 1 is gone", (1,))


class PrefillSide:
    """A pusher, its clock, and the pages that came back from it."""

    def __init__(
        self, *, is_sealed: bool = True, uses_process_groups: bool = False, pages: PartedPages | None = None
    ) -> None:
        self.released: queue.Queue[list[PageIndex]] = queue.Queue()
        self.clock = Clock()
        layout = make_layout()
        writers = WriterFactory(
            pages or PartedPages.whole(layout, PAGES), allow_shared_memory=True, uses_process_groups=uses_process_groups
        )
        self.pusher = PagePusher(
            layout, writers, SECRET, self.released.put, self.clock, is_sealed=is_sealed, held_file="own.pages"
        )
        self.pusher.start()

    def expect_released(self) -> list[PageIndex]:
        return self.released.get(timeout=DEADLINE_MS / 1000)

    def close(self) -> None:
        if self.pusher.is_alive:
            self.pusher.stop()


@pytest.fixture
def decode_side() -> Iterator[DecodeSide]:
    side = DecodeSide()
    yield side
    side.close()


@pytest.fixture
def prefill() -> Iterator[PrefillSide]:
    side = PrefillSide()
    yield side
    side.close()


def departure_to(decode_side: DecodeSide, num_pages: int = 3, **changes: object) -> Departure:
    """Of a prompt whose page i goes to page i + 4 there."""
    fields: dict[str, object] = {"page_indices": tuple(PageIndex(i + 4) for i in range(num_pages))}
    ticket: HandoverTicket = make_ticket(num_pages, endpoint=decode_side.endpoint, **{**fields, **changes})
    return Departure(RequestId("r"), ticket)


def pages(*indices: int) -> list[PageIndex]:
    return [PageIndex(index) for index in indices]


def begun(prefill: PrefillSide, decode_side: DecodeSide, **changes: object) -> Departure:
    """A hand-over whose first two pages were offered and whose BeginPush has arrived."""
    departure = departure_to(decode_side, **changes)
    prefill.pusher.export(departure, 0, pages(7, 0))
    decode_side.expect(BeginPush)
    return departure


def test_first_page_announces_the_push(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    prefill.pusher.export(departure_to(decode_side), 0, pages(7))
    message = decode_side.expect(BeginPush)
    assert (message.request_id, message.generation, message.layout) == ("r", 1, make_layout())
    assert (message.process_id, message.held_file, message.uses_shared_memory) == (os.getpid(), "own.pages", False)


def test_nothing_is_sent_or_given_back_before_the_grant(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    begun(prefill, decode_side)
    assert decode_side.hears_nothing()
    assert prefill.released.empty()


def test_granted_pages_are_sent_with_their_content(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    begun(prefill, decode_side)
    decode_side.grants()
    assert decode_side.expect_pages() == ((4, 5), bytes(pack_pages(PAGES, pages(7, 0))))


def test_sent_pages_are_given_back(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    begun(prefill, decode_side)
    decode_side.grants()
    assert prefill.expect_released() == [7, 0]


def test_later_pages_go_to_their_own_places(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    departure = begun(prefill, decode_side)
    decode_side.grants()
    decode_side.expect_pages()
    prefill.pusher.export(departure, 2, pages(3))
    assert decode_side.expect_pages()[0] == (6,)


def test_pages_that_the_other_side_holds_are_counted_off(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    departure = departure_to(decode_side, first_page=2)
    prefill.pusher.export(departure, 2, pages(7))
    prefill.pusher.export(departure, 3, pages(1))
    decode_side.expect(BeginPush)
    decode_side.grants()
    assert decode_side.expect_pages()[0] == (4, 5)


def test_finished_hand_over_is_committed_after_its_pages(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    departure = begun(prefill, decode_side)
    prefill.pusher.export(departure, 2, pages(3))
    prefill.pusher.finish(departure, (9,), 0.0)
    decode_side.grants()
    assert decode_side.expect_pages()[0] == (4, 5, 6)
    commit = decode_side.expect(Commit)
    assert (commit.generation, commit.emitted_token_ids) == (1, (9,))


def test_committed_push_is_counted_with_its_bytes(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    prefill.pusher.finish(begun(prefill, decode_side), (9,), 0.0)
    decode_side.grants()
    decode_side.expect_pages()
    decode_side.expect(Commit)
    prefill.pusher.stop()
    counters = prefill.pusher.counters()
    assert (counters.pushed_requests, counters.pushed_bytes_tcp) == (1, 2 * PAGE_BYTES)
    assert counters.pushed_bytes_shared_memory == 0


def test_pages_sent_before_the_prompt_ends_count_as_hidden(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    departure = begun(prefill, decode_side)
    decode_side.grants()
    decode_side.expect_pages()
    prefill.pusher.finish(departure, (9,), 0.0)
    prefill.pusher.export(departure, 2, pages(3))
    decode_side.expect(Commit)
    prefill.pusher.stop()
    assert prefill.pusher.counters().hidden_bytes == 2 * PAGE_BYTES


def test_time_from_the_last_chunk_to_the_last_page_is_exposed(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    prefill.pusher.finish(begun(prefill, decode_side), (9,), 0.0)
    assert decode_side.hears_nothing()  # it waits for the grant
    prefill.clock.now = 0.5
    decode_side.grants()
    decode_side.expect(Commit)
    prefill.pusher.stop()
    assert prefill.pusher.counters().exposed_s == 0.5


MANY = 32 * 2**20 // PAGE_BYTES
"""More pages than the system keeps for a connection that nobody reads."""


def large(prefill: PrefillSide, decode_side: DecodeSide) -> Departure:
    """The memory has 8 pages, which are sent again and again."""
    departure = departure_to(decode_side, MANY)
    prefill.pusher.export(departure, 0, [PageIndex(i % 8) for i in range(MANY)])
    decode_side.expect(BeginPush)
    return departure


def test_contents_that_are_read_make_room_for_all_the_rest(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    prefill.pusher.finish(large(prefill, decode_side), (9,), 0.0)
    contents = decode_side.grants()
    found: list[int] = []
    while len(found) < MANY:
        found += contents.expect_pages()[0]
    assert found == list(range(4, 4 + MANY))
    assert decode_side.expect(Commit).emitted_token_ids == (9,)
    assert contents.is_closed()


def test_push_whose_contents_nobody_reads_holds_up_no_other(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    prefill.pusher.finish(large(prefill, decode_side), (9,), 0.0)
    decode_side.grants()
    prefill.pusher.finish(begun(prefill, decode_side, generation=Generation(2)), (8,), 0.0)
    decode_side.grants(2)
    assert decode_side.expect_pages()[0] == (4, 5)
    assert decode_side.expect(Commit).generation == 2


def test_pushes_take_turns(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    """Also where nothing has to be waited for, as in shared memory."""
    segment = SharedSegment.create(NAME, page_shape(MANY + 4), torch.float32)
    try:
        first = departure_to(decode_side, MANY, segments=whole_segment(NAME))
        second = departure_to(decode_side, generation=Generation(2), segments=whole_segment(NAME))
        prefill.pusher.export(first, 0, [PageIndex(i % 8) for i in range(MANY)])
        prefill.pusher.finish(first, (9,), 0.0)
        decode_side.expect(BeginPush)
        prefill.pusher.export(second, 0, pages(7))
        prefill.pusher.finish(second, (8,), 0.0)
        decode_side.expect(BeginPush)
        for generation in (2, 1):
            decode_side.says(PushGranted(generation=Generation(generation)))
        generations = [decode_side.expect(kind).generation for kind in (PushPages, Commit, PushPages, PushPages)]
        assert generations == [2, 2, 1, 1]
    finally:
        segment.remove()


def test_push_whose_contents_nobody_reads_ends_at_its_deadline(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    large(prefill, decode_side)
    contents = decode_side.grants()
    contents.expect_pages()
    assert decode_side.socket.poll(SILENCE_MS) == 0  # what the system keeps is full
    prefill.clock.now = 5.0
    assert decode_side.expect(Quiet).reason == "no answer within the deadline"
    assert contents.is_closed()


def test_connection_says_whom_its_contents_are_for_and_proves_the_grant(
    prefill: PrefillSide, decode_side: DecodeSide
) -> None:
    begun(prefill, decode_side)
    contents = decode_side.grants()
    assert (contents.generation, contents.proof) == (1, proof_of(KEY))


def test_connection_that_breaks_ends_the_push_and_gives_its_pages_back(
    prefill: PrefillSide, decode_side: DecodeSide
) -> None:
    large(prefill, decode_side)
    contents = decode_side.grants()
    contents.expect_pages()
    contents.close()
    assert "pages can't be sent" in decode_side.expect(Quiet).reason
    num_released = 0
    while num_released < MANY:
        num_released += len(prefill.expect_released())
    assert num_released == MANY


def test_second_grant_of_a_push_changes_nothing(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    departure = begun(prefill, decode_side)
    decode_side.grants()
    decode_side.expect_pages()
    decode_side.says(PushGranted(generation=Generation(1), page_endpoint=decode_side.page_endpoint, page_key=b"x" * 16))
    prefill.pusher.export(departure, 2, pages(3))
    assert decode_side.expect_pages()[0] == (6,)


def test_pages_go_in_the_clear_only_if_both_sides_agree(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    begun(prefill, decode_side)
    decode_side.says(
        PushGranted(generation=Generation(1), page_endpoint=decode_side.page_endpoint, page_key=KEY, is_sealed=False)
    )
    assert decode_side.expect(Quiet).reason == "the grant is of no use: it asks for contents without a seal"


def test_writer_that_needs_no_seal_says_so_and_sends_its_pages_as_they_are(decode_side: DecodeSide) -> None:
    side = PrefillSide(is_sealed=False)
    try:
        side.pusher.export(departure_to(decode_side), 0, pages(7, 0))
        assert not decode_side.expect(BeginPush).is_sealed
        decode_side.grants(is_sealed=False)
        assert decode_side.expect_pages() == ((4, 5), bytes(pack_pages(PAGES, pages(7, 0))))
    finally:
        side.close()


@pytest.mark.parametrize(
    ("address", "key"), [("nowhere", b"k" * KEY_BYTES), ("tcp://127.0.0.1:9", b""), ("tcp://127.0.0.1:9", b"short")]
)
def test_grant_that_can_not_be_used_ends_the_push(
    prefill: PrefillSide, decode_side: DecodeSide, address: str, key: bytes
) -> None:
    begun(prefill, decode_side)
    decode_side.says(PushGranted(generation=Generation(1), page_endpoint=address, page_key=key))
    assert decode_side.expect(Quiet).generation == 1
    assert sorted(prefill.expect_released()) == [0, 7]


def test_pages_on_this_host_are_written_straight(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    segment = SharedSegment.create(NAME, page_shape(8), torch.float32)
    try:
        prefill.pusher.export(departure_to(decode_side, segments=whole_segment(NAME)), 0, pages(7, 0))
        assert decode_side.expect(BeginPush).uses_shared_memory
        assert not segment.tensor.any()
        decode_side.says(PushGranted(generation=Generation(1)))
        assert decode_side.expect(PushPages).page_indices == (4, 5)
        assert torch.equal(segment.tensor[:, :, [4, 5]], PAGES[:, :, [7, 0]])
    finally:
        segment.remove()
    assert not (SHARED_MEMORY / NAME).exists()


def test_refused_pages_are_given_back_and_nothing_more_is_said(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    begun(prefill, decode_side)
    decode_side.says(PushRefused(generation=Generation(1), reason="no such reservation"))
    assert prefill.expect_released() == [7, 0]
    assert decode_side.hears_nothing()


def test_cancelled_push_says_quiet_and_gives_its_pages_back(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    begun(prefill, decode_side)
    decode_side.says(CancelPush(generation=Generation(1)))
    assert decode_side.expect(Quiet).generation == 1
    assert prefill.expect_released() == [7, 0]


def test_cancel_in_the_middle_of_a_push_is_answered_quiet(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    begun(prefill, decode_side)
    decode_side.grants()
    decode_side.expect_pages()
    decode_side.says(CancelPush(generation=Generation(1)))
    assert decode_side.expect(Quiet).generation == 1


def test_quiet_is_said_even_of_a_push_that_is_done(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    """The cancel crossed the commit: the other side waits for the word all the same."""
    prefill.pusher.finish(begun(prefill, decode_side), (9,), 0.0)
    decode_side.grants()
    decode_side.expect_pages()
    decode_side.expect(Commit)
    decode_side.says(CancelPush(generation=Generation(1)))
    assert decode_side.expect(Quiet).generation == 1


def test_end_that_the_engine_chose_gives_pages_back_and_is_told_by_nobody_else(
    prefill: PrefillSide, decode_side: DecodeSide
) -> None:
    """A failure told by the decode side could reach the router before an answer that ended with its first token."""
    prefill.pusher.cancel(begun(prefill, decode_side))
    assert prefill.expect_released() == [7, 0]
    assert decode_side.hears_nothing()


@pytest.mark.parametrize("begins_to_write", [False, True])
def test_decode_side_that_asks_after_such_an_end_is_told_quiet(
    prefill: PrefillSide, decode_side: DecodeSide, begins_to_write: bool
) -> None:
    departure = begun(prefill, decode_side)
    if begins_to_write:
        decode_side.grants()
        decode_side.expect_pages()
    prefill.pusher.cancel(departure)
    assert prefill.expect_released() == [7, 0]
    decode_side.says(CancelPush(generation=Generation(1)))
    assert decode_side.expect(Quiet).generation == 1


def test_grant_after_such_an_end_opens_no_door(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    prefill.pusher.cancel(begun(prefill, decode_side))
    assert prefill.expect_released() == [7, 0]
    decode_side.says(PushGranted(generation=Generation(1), page_endpoint=decode_side.page_endpoint, page_key=KEY))
    assert decode_side.hears_nothing()
    assert not decode_side.is_visited()


@pytest.mark.parametrize(
    ("answer", "is_told"),
    [(CancelPush(generation=Generation(1)), True), (PushRefused(generation=Generation(1), reason="gone"), False)],
    ids=["cancelled", "refused"],
)
@pytest.mark.parametrize("engine_is_first", [False, True])
def test_end_from_both_sides_gives_pages_back_once(
    prefill: PrefillSide, decode_side: DecodeSide, answer: Message, is_told: bool, engine_is_first: bool
) -> None:
    departure = begun(prefill, decode_side)
    if engine_is_first:
        prefill.pusher.cancel(departure)
        assert prefill.expect_released() == [7, 0]
    decode_side.says(answer)
    if is_told:
        decode_side.expect(Quiet)
    if not engine_is_first:
        assert prefill.expect_released() == [7, 0]
        prefill.pusher.cancel(departure)
    assert decode_side.hears_nothing()
    assert prefill.released.empty()


def test_silent_side_costs_its_pages_until_the_deadline_and_no_longer(
    prefill: PrefillSide, decode_side: DecodeSide
) -> None:
    begun(prefill, decode_side)
    prefill.clock.now = 4.9
    assert decode_side.hears_nothing()
    assert prefill.released.empty()
    prefill.clock.now = 5.0
    assert prefill.expect_released() == [7, 0]
    assert decode_side.expect(Quiet).reason == "no answer within the deadline"


def test_side_that_is_not_there_costs_nothing_after_the_deadline(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    ticket = make_ticket(1, endpoint="tcp://127.0.0.1:9")
    prefill.pusher.export(Departure(RequestId("r"), ticket), 0, pages(2))
    begun(prefill, decode_side)  # what was asked for before has been done, too
    prefill.clock.now = 5.0
    assert prefill.expect_released() == [2]


def test_each_batch_moves_the_deadline(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    departure = begun(prefill, decode_side)
    decode_side.grants()
    decode_side.expect_pages()
    prefill.expect_released()
    prefill.clock.now = 4.0
    prefill.pusher.export(departure, 2, pages(3))
    decode_side.expect_pages()
    prefill.expect_released()  # the pusher, too, knows that they went
    prefill.clock.now = 8.9
    assert decode_side.hears_nothing()
    prefill.clock.now = 9.0
    assert decode_side.expect(Quiet)


def test_pages_of_a_push_that_was_refused_come_back_too(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    """The engine still computes chunks: they cost no page, and nobody is asked for them."""
    departure = begun(prefill, decode_side)
    decode_side.says(PushRefused(generation=Generation(1), reason="gone"))
    prefill.expect_released()
    prefill.pusher.export(departure, 2, pages(3))
    prefill.pusher.finish(departure, (9,), 0.0)
    assert prefill.expect_released() == [3]
    assert decode_side.hears_nothing()


def test_late_grant_of_a_push_that_has_ended_opens_no_door(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    """The pages that it grants were given back when the writer said Quiet."""
    departure = begun(prefill, decode_side)
    prefill.clock.now = 3.0
    prefill.pusher.export(departure_to(decode_side, generation=Generation(2)), 0, pages(1))  # keeps the connection
    decode_side.expect(BeginPush)
    prefill.clock.now = 6.0
    decode_side.expect(Quiet)
    prefill.pusher.export(departure, 2, pages(3))
    decode_side.says(PushGranted(generation=Generation(1), page_endpoint=decode_side.page_endpoint, page_key=KEY))
    assert decode_side.hears_nothing()
    assert not decode_side.is_visited()


def test_ticket_with_no_address_harms_no_other_push(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    lost = Departure(RequestId("lost"), make_ticket(1, endpoint="nowhere"))
    prefill.pusher.export(lost, 0, pages(1))
    begun(prefill, decode_side)
    decode_side.grants()
    decode_side.expect_pages()
    prefill.clock.now = 100.0
    assert sorted(prefill.expect_released() + prefill.expect_released()) == [0, 1, 7]
    assert prefill.pusher.is_alive


def test_ticket_with_too_few_pages_ends_the_push_and_not_the_pusher(
    prefill: PrefillSide, decode_side: DecodeSide
) -> None:
    begun(prefill, decode_side, page_indices=(PageIndex(4),))
    assert decode_side.expect(Quiet).reason == "the ticket has fewer pages than the prompt"
    assert prefill.expect_released() == [7, 0]
    assert prefill.pusher.is_alive


def committed(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    prefill.pusher.finish(begun(prefill, decode_side), (9,), 0.0)
    decode_side.grants()
    decode_side.expect_pages()
    decode_side.expect(Commit)


def test_connection_without_a_word_for_a_minute_is_closed_and_opened_anew(
    prefill: PrefillSide, decode_side: DecodeSide
) -> None:
    committed(prefill, decode_side)
    prefill.clock.now = 60.0
    decode_side.expect_left()
    committed(prefill, decode_side)


def test_every_word_keeps_the_connection_open(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    committed(prefill, decode_side)
    for _ in range(3):
        prefill.clock.now += 59.0
        decode_side.says(CancelPush(generation=Generation(1)))
        decode_side.expect(Quiet)
    assert not decode_side.disconnections.poll(SILENCE_MS)


def test_two_pushes_do_not_meet(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    begun(prefill, decode_side)
    other = departure_to(decode_side, generation=Generation(2))
    prefill.pusher.export(other, 0, pages(1))
    decode_side.expect(BeginPush)
    decode_side.grants(2)
    assert decode_side.expect_pages() == ((4,), bytes(pack_pages(PAGES, pages(1))))
    assert prefill.expect_released() == [1]
    assert prefill.released.empty()


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", encode(Hello(sender="x")), encode(PushGranted(generation=Generation(9)))]
)
def test_bad_or_odd_message_harms_no_push(prefill: PrefillSide, decode_side: DecodeSide, frame: bytes) -> None:
    begun(prefill, decode_side)
    decode_side.says_raw(frame)
    decode_side.grants()
    assert decode_side.expect_pages()[0] == (4, 5)


def test_stopping_replica_says_quiet_and_gives_all_pages_back(prefill: PrefillSide, decode_side: DecodeSide) -> None:
    begun(prefill, decode_side)
    prefill.pusher.stop()
    assert decode_side.expect(Quiet).reason == "the replica stops"
    assert prefill.expect_released() == [7, 0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_dead_thread_is_seen(decode_side: DecodeSide) -> None:
    def fail(released: list[PageIndex]) -> None:
        raise RuntimeError(f"{len(released)} pages can't be released")

    layout = make_layout()
    pusher = PagePusher(
        layout, WriterFactory(PartedPages.whole(layout, PAGES), allow_shared_memory=False), SECRET, fail
    )
    pusher.start()
    assert pusher.is_alive
    pusher.export(departure_to(decode_side), 0, pages(1))
    decode_side.expect(BeginPush)
    decode_side.says(PushRefused(generation=Generation(1), reason="no"))
    pusher._thread._thread.join(DEADLINE_MS / 1000)
    assert not pusher.is_alive
    pusher.stop()


def test_pusher_that_never_started_can_be_stopped() -> None:
    layout = make_layout()
    writers = WriterFactory(PartedPages.whole(layout, PAGES), allow_shared_memory=False)
    pusher = PagePusher(layout, writers, SECRET, lambda released: None)
    pusher.stop()
    pusher.stop()
    assert pusher._peers.context.closed


# Through a process group


@pytest.fixture
def grouped() -> Iterator[PrefillSide]:
    side = PrefillSide(uses_process_groups=True)
    yield side
    side.close()


def test_contents_go_through_the_group_where_the_other_side_waits(
    grouped: PrefillSide, decode_side: DecodeSide
) -> None:
    received: queue.Queue[bytes] = queue.Queue()
    _, port = host = host_store("127.0.0.1")
    place = PairMeeting(host="127.0.0.1", port=port, name="pair")
    seat = PairSeat(
        rank=DECODE_SIDE, host="127.0.0.1", deadline_s=10.0, device=torch.device("cpu"), post=lambda work: work()
    )
    reader = PairGroup(place, seat, lambda reason: None)
    grouped.pusher.export(departure_to(decode_side), 0, pages(7, 0))
    begin = decode_side.expect(BeginPush)
    assert (begin.uses_process_group, begin.uses_shared_memory) == (True, False)
    decode_side.says(PushGranted(generation=Generation(1), meeting=place.to_text()))
    message = decode_side.expect(PushPages)
    reader.receive(Generation(1), 2 * PAGE_BYTES, lambda content: received.put(bytes(content)))
    assert received.get(timeout=DEADLINE_MS / 1000) == bytes(pack_pages(PAGES, pages(7, 0)))
    assert message.page_indices == (4, 5)
    assert grouped.expect_released() == [7, 0]
    grouped.pusher.stop()
    assert grouped.pusher.counters().pushed_bytes_process_group == 2 * PAGE_BYTES
    assert host


def test_place_where_nobody_can_meet_ends_the_push(grouped: PrefillSide, decode_side: DecodeSide) -> None:
    begun(grouped, decode_side)
    decode_side.says(PushGranted(generation=Generation(1), meeting="nowhere"))
    assert "the grant is of no use" in decode_side.expect(Quiet).reason
    assert grouped.expect_released() == [7, 0]


def test_group_that_breaks_ends_the_push(grouped: PrefillSide, decode_side: DecodeSide) -> None:
    store, port = host_store("127.0.0.1")
    begun(grouped, decode_side, deadline_s=0.5)
    place = PairMeeting(host="127.0.0.1", port=port, name="pair")
    decode_side.says(PushGranted(generation=Generation(1), meeting=place.to_text()))
    decode_side.expect(PushPages)
    quiet = decode_side.expect(Quiet)
    assert "pages can't be sent" in quiet.reason
    assert quiet.broken_meeting == place.to_text()
    assert grouped.expect_released() == [7, 0]
    assert store


@pytest.fixture
def unreadable() -> Iterator[PrefillSide]:
    side = PrefillSide(uses_process_groups=True, pages=LostPages.whole(make_layout(), PAGES))
    yield side
    side.close()


def test_pages_that_can_not_be_read_are_not_announced(unreadable: PrefillSide, decode_side: DecodeSide) -> None:
    _, port = host = host_store("127.0.0.1")
    begun(unreadable, decode_side)
    place = PairMeeting(host="127.0.0.1", port=port, name="pair")
    decode_side.says(PushGranted(generation=Generation(1), meeting=place.to_text()))
    quiet = decode_side.expect(Quiet)
    assert (quiet.reason, quiet.broken_meeting) == ("pages can't be read: rank 1 is gone", "")
    assert host
