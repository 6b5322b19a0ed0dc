"""Connections for page contents, from whoever reaches the port."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

import pytest
import zmq

from kvasir_protocol.errors import ConfigError, WireError
from kvasir_protocol.ids import Generation, PageIndex
from kvasir_protocol.messages import PushPages
from kvasir_protocol.wire import decode, encode
from kvasir_workers.kv.transfer.entrance import REST_S
from kvasir_workers.kv.transfer.page_intake import GREETING_S, MOST_UNGREETED, PageIntake, listen_for_pages
from kvasir_workers.kv.transfer.page_stream import HELLO, LENGTHS, SAME_HOST_BYTES, Landing, PageLine
from kvasir_workers.kv.transfer.pieces import Pieces
from kvasir_workers.kv.transfer.sealing import (
    BLOCK_BYTES,
    KEY_BYTES,
    PROOF_BYTES,
    TAG_BYTES,
    Opening,
    PageSeal,
    sealed_blocks,
)
from kvasir_workers.socket_thread import Rounds, SocketThread
from tests.unit.workers.fakes import Clock
from tests.unit.workers.kv.transfer.crowded import CrowdedListener

DEADLINE_S = 10.0
GENERATION = Generation(7)
PROOF, KEY = bytes(PROOF_BYTES), bytes(KEY_BYTES)
HEADER = encode(PushPages(generation=GENERATION, page_indices=(PageIndex(1), PageIndex(2))))


class FakeTaker:
    """Takes what comes for one generation; places: where it is to go to, if not to new memory; opens what is sealed."""

    def __init__(self) -> None:
        self.awaited = {GENERATION}
        self.places: Sequence[memoryview] = ()
        self.opener: PageSeal | None = None
        self.taken: list[tuple[PushPages, bytes]] = []

    def greet(self, generation: Generation, proof: bytes) -> None:
        if generation not in self.awaited or proof != PROOF:
            raise WireError("nobody awaits it")

    def awaits_contents(self, generation: Generation) -> bool:
        return generation in self.awaited

    def land(self, generation: Generation, header: bytes, num_bytes: int) -> Landing:
        message = decode(header)
        assert isinstance(message, PushPages)
        places = self.places or [memoryview(bytearray(num_bytes))]
        return Landing(message, places, Opening(self.opener, header, Pieces(places)) if self.opener else None)

    def take(self, landing: Landing) -> None:
        if landing.opening is not None and landing.opening.is_broken:
            raise WireError("a broken seal")
        self.taken.append((landing.message, b"".join(landing.places)))


class House:
    """An intake whose thread is the test: `look` does what is to be done."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.clock, self.taker = Clock(), FakeTaker()
        self.num_looks = 0
        self.thread = SocketThread(
            self.context, "test", Rounds(timeout_ms=lambda: 0, on_round=self.look, on_end=lambda: None)
        )
        listener, self.endpoint = listen_for_pages("127.0.0.1")
        self.listener = CrowdedListener(listener)
        self.listener.is_full = False
        self.intake = PageIntake(self.listener, self.taker, self.thread, self.clock)
        self.visitors: list[socket.socket] = []
        self.thread.start()

    def look(self) -> None:
        self.num_looks += 1
        self.intake.tick()

    def visit(self, first_words: bytes = HELLO.pack(GENERATION, PROOF)) -> socket.socket:
        host, port = self.endpoint.removeprefix("tcp://").split(":")
        self.visitors.append(socket.create_connection((host, int(port)), DEADLINE_S))
        self.visitors[-1].sendall(first_words)
        return self.visitors[-1]

    def close(self) -> None:
        self.thread.stop()
        self.intake.close()
        for visitor in self.visitors:
            visitor.close()
        self.context.destroy(linger=0)


@pytest.fixture
def house() -> Iterator[House]:
    with closing(House()) as made:
        yield made


def frame(content: bytes) -> bytes:
    return LENGTHS.pack(len(HEADER), len(content)) + HEADER + content


def expect_closed(visitor: socket.socket) -> None:
    with suppress(ConnectionResetError):
        assert visitor.recv(1) == b""


def until_taken(house: House, number: int) -> None:
    while len(house.taker.taken) < number:
        assert house.thread.is_alive


def test_frames_arrive_whole_and_in_order(house: House) -> None:
    house.visit().sendall(frame(b"first") + frame(b"second"))
    until_taken(house, 2)
    assert [content for _, content in house.taker.taken] == [b"first", b"second"]
    assert house.taker.taken[0][0] == decode(HEADER)


def test_frame_that_comes_byte_by_byte_arrives_whole(house: House) -> None:
    visitor = house.visit(b"")
    for byte in HELLO.pack(GENERATION, PROOF) + frame(b"content"):
        visitor.sendall(bytes([byte]))
    until_taken(house, 1)
    assert house.taker.taken[0][1] == b"content"


def test_contents_go_straight_to_their_places(house: House) -> None:
    first, second = bytearray(3), bytearray(4)
    house.taker.places = [memoryview(first), memoryview(second)]
    house.visit().sendall(frame(b"content"))
    until_taken(house, 1)
    assert (first, second) == (b"con", b"tent")


def test_line_brings_what_is_put_on_it(house: House) -> None:
    line = PageLine(house.endpoint, GENERATION, PROOF)
    line.put(HEADER, 7, [[memoryview(b"con"), memoryview(b"")], [memoryview(b"tent")]])
    while not line.is_idle:
        line.flush()
    until_taken(house, 1)
    line.close()
    assert house.taker.taken[0][1] == b"content"


def test_line_asks_for_a_block_when_the_one_before_is_gone(house: House) -> None:
    """So that all blocks of a frame may use the same memory."""
    line, room = PageLine(house.endpoint, GENERATION, PROOF), bytearray(3)

    def blocks() -> Iterator[list[memoryview]]:
        for block in (b"abc", b"def", b"ghi"):
            room[:] = block
            yield [memoryview(room)]

    line.put(HEADER, 9, blocks())
    while not line.is_idle:
        line.flush()
    until_taken(house, 1)
    line.close()
    assert house.taker.taken[0][1] == b"abcdefghi"


def test_little_is_on_its_way_to_the_same_host(house: House) -> None:
    line = PageLine(house.endpoint, GENERATION, PROOF)
    assert line.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * SAME_HOST_BYTES
    line.close()


LARGE = bytes(range(251)) * (3 * BLOCK_BYTES // 251)
"""More than two blocks, and less than three."""


def test_sealed_contents_are_opened_into_their_places(house: House) -> None:
    house.taker.opener = PageSeal(KEY)
    place = bytearray(len(LARGE))
    house.taker.places = [memoryview(place)[:1000], memoryview(place)[1000:]]
    sealed = b"".join(map(bytes, sealed_blocks(PageSeal(KEY), HEADER, Pieces([memoryview(LARGE)]))))
    house.visit().sendall(frame(sealed))
    until_taken(house, 1)
    assert place == LARGE


def test_block_with_a_broken_seal_closes_the_connection_and_is_not_put_in_its_place(house: House) -> None:
    house.taker.opener = PageSeal(KEY)
    place = bytearray(len(LARGE))
    house.taker.places = [memoryview(place)]
    sealed = bytearray(b"".join(map(bytes, sealed_blocks(PageSeal(KEY), HEADER, Pieces([memoryview(LARGE)])))))
    sealed[BLOCK_BYTES + TAG_BYTES] ^= 1
    visitor = house.visit()
    with suppress(ConnectionError):
        visitor.sendall(frame(bytes(sealed)))
    expect_closed(visitor)
    assert place == LARGE[:BLOCK_BYTES] + bytes(len(LARGE) - BLOCK_BYTES)
    assert house.taker.taken == []


@pytest.mark.parametrize("endpoint", ["nowhere", "tcp://", "tcp://127.0.0.1", "ipc://127.0.0.1:9", "tcp://host:port"])
def test_line_needs_an_address(endpoint: str) -> None:
    with pytest.raises(ValueError):
        PageLine(endpoint, GENERATION, PROOF)


def test_stranger_is_closed(house: House) -> None:
    expect_closed(house.visit(HELLO.pack(8, PROOF)))
    expect_closed(house.visit(HELLO.pack(GENERATION, b"x" * PROOF_BYTES)))


def test_whoever_does_not_say_what_it_comes_for_is_closed_in_time(house: House) -> None:
    visitor = house.visit(b"half")
    friend = house.visit()
    friend.sendall(frame(b"content"))
    until_taken(house, 1)  # the other one was accepted before
    house.clock.now += GREETING_S
    expect_closed(visitor)
    friend.sendall(frame(b"more"))
    until_taken(house, 2)


def test_crowd_of_strangers_keeps_nobody_out(house: House) -> None:
    crowd = [house.visit(b"") for _ in range(MOST_UNGREETED + 1)]
    expect_closed(crowd[0])
    house.visit().sendall(frame(b"content"))
    until_taken(house, 1)


def test_process_that_may_open_no_more_files_serves_whom_it_has_and_asks_for_no_others_all_the_time(
    house: House,
) -> None:
    friend = house.visit()
    friend.sendall(frame(b"first"))
    until_taken(house, 1)
    house.listener.is_full = True
    house.visit().sendall(frame(b"third"))
    while not house.listener.num_asked:
        assert house.thread.is_alive
    num_looks = house.num_looks
    while house.num_looks < num_looks + 100:
        assert house.thread.is_alive
    assert house.listener.num_asked == 1
    friend.sendall(frame(b"second"))
    until_taken(house, 2)
    house.listener.is_full = False
    house.clock.now += REST_S
    until_taken(house, 3)
    assert [content for _, content in house.taker.taken] == [b"first", b"second", b"third"]


def test_connection_is_closed_once_its_contents_are_not_awaited_any_more(house: House) -> None:
    visitor = house.visit()
    visitor.sendall(frame(b"content"))
    until_taken(house, 1)
    house.taker.awaited.clear()
    expect_closed(visitor)


def test_nothing_is_written_for_a_reservation_that_ended_in_the_middle_of_a_frame(house: House) -> None:
    """The memory may be another's by then."""
    place = bytearray(7)
    house.taker.places = [memoryview(place)]
    visitor = house.visit()
    visitor.sendall(frame(b"content")[:-4])
    while place[:3] != b"con":
        assert house.thread.is_alive
    house.taker.awaited.clear()
    with suppress(ConnectionError):
        visitor.sendall(b"tent")
    expect_closed(visitor)
    assert place == b"con" + bytes(4)


def test_taken_address_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="can't listen on 192"):
        listen_for_pages("192.0.2.1")
