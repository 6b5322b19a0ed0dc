"""Plans on their way: whole frames in order, and word of who takes none."""

import socket

import pytest

from kvasir_protocol.errors import RankLost, WireError
from kvasir_protocol.wire import MAX_MESSAGE_BYTES
from kvasir_workers.parallel.links import SocketReceiver, SocketSender


def pairs(*ranks: int) -> tuple[SocketSender, dict[int, socket.socket]]:
    ends = {rank: socket.socketpair() for rank in ranks}
    sender = SocketSender({rank: ours for rank, (ours, _) in ends.items()}, deadline_s=0.2)
    return sender, {rank: theirs for rank, (_, theirs) in ends.items()}


def test_every_follower_gets_every_frame_in_order() -> None:
    sender, ends = pairs(1, 2)
    frames = [b"first", b"", b"x" * 70_000]
    for frame in frames:
        sender.send(frame)
    sender.close()
    for end in ends.values():
        receiver = SocketReceiver(end)
        assert [receiver.receive() for _ in frames] == frames
        assert receiver.receive() is None


def test_follower_that_is_gone_is_named() -> None:
    sender, ends = pairs(1, 2)
    ends[2].close()
    with pytest.raises(RankLost, match="rank 2 is gone") as caught:
        sender.send(b"x")
    assert caught.value.ranks == (2,)


def test_follower_that_takes_nothing_is_named() -> None:
    sender, ends = pairs(1)
    with pytest.raises(RankLost, match="rank 1 takes no more plans"):
        sender.send(b"x" * 10_000_000)
    ends[1].close()


def test_leader_that_dies_within_a_frame_is_gone() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(b"\x09\0\0\0abc")
    ours.close()
    assert SocketReceiver(theirs).receive() is None


def test_frame_without_measure_is_refused() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall((MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"))
    with pytest.raises(WireError, match="the most is"):
        SocketReceiver(theirs).receive()


def test_who_waits_for_a_plan_looks_about_meanwhile() -> None:
    sender, ends = pairs(1)
    assert SocketReceiver(ends[1]).receive(lambda: sender.send(b"at last")) == b"at last"


def test_what_is_seen_meanwhile_ends_the_wait() -> None:
    def look() -> None:
        raise RankLost("rank 2 did not come", (2,))

    _, ends = pairs(1)
    with pytest.raises(RankLost, match="rank 2 did not come"):
        SocketReceiver(ends[1]).receive(look)


def test_who_waits_for_a_plan_works_meanwhile_until_it_comes() -> None:
    """What is not done by then waits for the next rest."""
    sender, ends = pairs(1)
    left = [1, 2, 3, 4]

    def work() -> bool:
        if left.pop() == 2:
            sender.send(b"at last")
        return True

    assert SocketReceiver(ends[1]).receive(idle_work=work) == b"at last"
    assert left == [1]


def test_plan_that_has_come_is_taken_before_anything_else_is_done() -> None:
    sender, ends = pairs(1)
    sender.send(b"first")
    done: list[str] = []

    def work() -> bool:
        done.append("work")
        return False

    assert SocketReceiver(ends[1]).receive(idle_work=work) == b"first"
    assert done == []


def test_who_waits_for_a_plan_looks_about_between_two_pieces_of_work() -> None:
    sender, ends = pairs(1)
    done: list[str] = []

    def work() -> bool:
        done.append("work")
        if len(done) == 6:
            sender.send(b"at last")
        return len(done) < 4

    SocketReceiver(ends[1]).receive(lambda: done.append("look"), work)
    assert done == ["look", "work"] * 3
