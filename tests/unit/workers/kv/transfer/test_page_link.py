"""Frames that only the other end can have sealed, in the order in which it did."""

import socket
import struct
from collections.abc import Iterator

import pytest

from kvasir_protocol.errors import WireError
from kvasir_protocol.wire import MAX_MESSAGE_BYTES
from kvasir_workers.kv.transfer.page_link import LinkKeys, SealedLink

KEYS = LinkKeys.fresh()


@pytest.fixture
def ends() -> Iterator[tuple[SealedLink, SealedLink]]:
    """Who asks, and who answers."""
    ours, theirs = socket.socketpair()
    asker, answerer = SealedLink(ours, KEYS.asks, KEYS.answers), SealedLink(theirs, KEYS.answers, KEYS.asks)
    yield asker, answerer
    asker.close()
    answerer.close()


def test_frames_arrive_whole_and_in_order_both_ways(ends: tuple[SealedLink, SealedLink]) -> None:
    asker, answerer = ends
    for number in range(3):
        asker.send(b"question %d" % number, memoryview(b"x" * 1000 * number))
        assert answerer.receive() == (b"question %d" % number, b"x" * 1000 * number)
        answerer.send(b"", memoryview(b"answer"))
        assert asker.receive() == (b"", b"answer")


def test_frame_that_is_said_twice_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        SealedLink(ours, KEYS.asks, KEYS.answers).send(b"h", memoryview(b"content"))
        said = theirs.recv(1000)
        ours.sendall(said * 2)
        link = SealedLink(theirs, KEYS.answers, KEYS.asks)
        assert link.receive() == (b"h", b"content")
        with pytest.raises(WireError, match="broken seal"):
            link.receive()


def test_answer_can_not_be_taken_for_a_question() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        SealedLink(ours, KEYS.answers, KEYS.asks).send(b"h", memoryview(b"content"))
        with pytest.raises(WireError, match="broken seal"):
            SealedLink(theirs, KEYS.answers, KEYS.asks).receive()


@pytest.mark.parametrize("sizes", [(MAX_MESSAGE_BYTES + 1, 0), (0, MAX_MESSAGE_BYTES + 1)])
def test_no_memory_is_taken_for_a_frame_that_is_too_large(sizes: tuple[int, int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(struct.pack("<IQ", *sizes))
        with pytest.raises(WireError, match="the most is"):
            SealedLink(theirs, KEYS.answers, KEYS.asks).receive()


def test_end_of_the_other_side_is_noticed_in_the_middle_of_a_frame() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(struct.pack("<IQ", 5, 5) + b"ab")
        ours.close()
        with pytest.raises(ConnectionResetError):
            SealedLink(theirs, KEYS.answers, KEYS.asks).receive()


def test_keys_come_out_of_their_bytes_as_they_went_in() -> None:
    assert LinkKeys.from_bytes(KEYS.to_bytes()) == KEYS
    with pytest.raises(WireError, match="32 bytes, got 3"):
        LinkKeys.from_bytes(b"abc")
