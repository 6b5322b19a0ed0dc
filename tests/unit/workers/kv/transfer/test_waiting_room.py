"""Strangers and a leader at one door; the clock is the test's."""

import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from kvasir_workers.kv.transfer.entrance import REST_S
from kvasir_workers.kv.transfer.page_intake import GREETING_S, MOST_UNGREETED
from kvasir_workers.kv.transfer.page_link import LinkKeys, SealedLink
from kvasir_workers.kv.transfer.sealing import TAG_BYTES
from kvasir_workers.kv.transfer.waiting_room import MOST_FIRST_BYTES, WaitingRoom
from tests.unit.workers.kv.transfer.crowded import CrowdedListener

KEYS = LinkKeys.fresh()
EMPTY = memoryview(b"")
PATIENCE_S = 20.0


@dataclass
class Door:
    """A listener and its waiting room."""

    now: float = 0.0
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def __post_init__(self) -> None:
        self.room = WaitingRoom(self.listener, KEYS, lambda: self.now)
        self.guests: list[socket.socket] = []

    def connect(self) -> socket.socket:
        """Somebody who has come in."""
        self.guests.append(socket.create_connection(self.listener.getsockname(), PATIENCE_S))
        assert self.room.look() is None
        return self.guests[-1]

    def is_turned_away(self, guest: socket.socket) -> bool:
        """The room has closed the connection; what it had not read resets it."""
        try:
            return guest.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.room.close()
        for each in (self.listener, *self.guests):
            each.close()


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


def ask(connection: socket.socket, question: bytes, keys: LinkKeys = KEYS) -> SealedLink:
    link = SealedLink(connection, sends=keys.asks, receives=keys.answers)
    link.send(question, EMPTY)
    return link


def test_leader_is_met_while_strangers_say_nothing_or_half_a_word(door: Door) -> None:
    door.connect()
    door.connect().sendall(b"half")
    leader = ask(door.connect(), b"question")
    answerer, question = door.room.await_first()
    answerer.send(b"", memoryview(b"answer"))
    assert (question, leader.receive()) == (b"question", (b"", b"answer"))
    answerer.close()


def test_what_the_leader_says_after_its_first_frame_is_left_to_its_link(door: Door) -> None:
    leader = ask(door.connect(), b"first")
    leader.send(b"second", memoryview(b"content"))
    answerer, _ = door.room.await_first()
    answerer.set_patience(PATIENCE_S)
    assert answerer.receive() == (b"second", b"content")
    answerer.close()


def test_deadline_is_for_the_whole_first_frame_and_not_for_each_byte(door: Door) -> None:
    stranger = door.connect()
    for door.now in (GREETING_S / 2, GREETING_S):
        stranger.sendall(b"x")
        assert door.room.look() is None
    assert door.is_turned_away(stranger)


@pytest.mark.parametrize("sizes", [(MOST_FIRST_BYTES + 1, 0), (0, TAG_BYTES + 1)])
def test_no_larger_frame_is_believed_before_a_seal_was_seen(door: Door, sizes: tuple[int, int]) -> None:
    stranger = door.connect()
    stranger.sendall(struct.pack("<IQ", *sizes))
    assert door.room.look() is None
    assert door.is_turned_away(stranger)


def test_broken_seal_is_turned_away(door: Door) -> None:
    stranger = door.connect()
    ask(stranger, b"question", LinkKeys.fresh())
    assert door.room.look() is None
    assert door.is_turned_away(stranger)


def test_of_too_many_the_oldest_has_to_go(door: Door) -> None:
    guests = [door.connect() for _ in range(MOST_UNGREETED + 1)]
    assert door.is_turned_away(guests[0])


def test_leader_that_came_while_no_file_could_be_opened_is_met_afterwards() -> None:
    listener = CrowdedListener(socket.create_server(("127.0.0.1", 0)))
    door = Door(listener=listener)
    leader = ask(door.connect(), b"question")
    assert listener.num_asked == 1
    listener.is_full = False
    door.now = REST_S
    answerer, question = door.room.await_first()
    answerer.send(b"", memoryview(b"answer"))
    assert (question, leader.receive()) == (b"question", (b"", b"answer"))
    door.close()
    answerer.close()


@pytest.mark.parametrize("arrive", [lambda door: None, lambda door: door.connect().sendall(b"half")])
def test_wait_ends_when_the_listener_is_shut_down(door: Door, arrive: Callable[[Door], None]) -> None:
    arrive(door)
    door.listener.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError):
        door.room.await_first()
