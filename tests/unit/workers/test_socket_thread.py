"""A thread that waits on sockets, and what it does from start to stop."""

import queue
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import zmq

from kvasir_workers.socket_thread import Rounds, SocketThread

DEADLINE_S = 10


class House:
    """A thread with one socket, and a record of what it did."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.done: queue.Queue[str] = queue.Queue()
        self.ends: list[str] = []
        rounds = Rounds(timeout_ms=lambda: 5000, on_round=lambda: None, on_end=lambda: self.ends.append("end"))
        self.thread = SocketThread(self.context, "test", rounds)
        self.socket = self.context.socket(zmq.PULL)
        self.socket.bind("inproc://house")
        self.visitor = self.context.socket(zmq.PUSH)
        self.visitor.connect("inproc://house")
        self.thread.register(self.socket, lambda: self.done.put(self.socket.recv().decode()))

    def expect(self) -> str:
        return self.done.get(timeout=DEADLINE_S)

    def close(self) -> None:
        self.thread.stop()
        self.context.destroy(linger=0)


@pytest.fixture
def house() -> Iterator[House]:
    with closing(House()) as made:
        yield made


def test_receiver_is_called_for_what_its_socket_holds(house: House) -> None:
    house.thread.start()
    house.visitor.send(b"hello")
    assert house.expect() == "hello"


def test_posted_work_is_done_also_if_posted_before_the_start(house: House) -> None:
    house.thread.post(lambda: house.done.put("early"))
    house.thread.start()
    house.thread.post(lambda: house.done.put("late"))
    assert [house.expect(), house.expect()] == ["early", "late"]


def test_socket_that_is_unregistered_is_left_alone(house: House) -> None:
    house.thread.start()
    house.thread.post(lambda: house.thread.unregister(house.socket))
    house.thread.post(lambda: house.done.put("unregistered"))
    assert house.expect() == "unregistered"
    house.visitor.send(b"hello")
    house.thread.post(lambda: house.done.put("posted"))
    assert house.expect() == "posted"
    house.thread.stop()
    assert house.done.empty()


def test_sockets_of_the_system_are_waited_on_as_well(house: House) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        house.thread.register(ours, lambda: house.done.put(ours.recv(16).decode()))
        house.thread.start()
        theirs.sendall(b"hello")
        assert house.expect() == "hello"
        house.thread.stop()


def test_socket_that_takes_nothing_more_is_told_of_once_it_does(house: House) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        num_bytes = 0
        with suppress(BlockingIOError):
            while True:
                num_bytes += ours.send(bytes(65536))

        def note() -> None:
            house.thread.unregister(ours)
            house.done.put("room")

        house.thread.register(ours, note, to_write=True)
        house.thread.start()
        house.thread.post(lambda: house.done.put("posted"))
        assert house.expect() == "posted"
        while num_bytes:
            num_bytes -= len(theirs.recv(65536))
        assert house.expect() == "room"
        house.thread.stop()


def test_thread_is_alive_from_start_to_stop(house: House) -> None:
    states = [house.thread.is_alive]
    house.thread.start()
    states.append(house.thread.is_alive)
    house.thread.stop()
    assert [*states, house.thread.is_alive] == [False, True, False]


@pytest.mark.parametrize("starts", [False, True])
def test_end_is_told_also_if_it_never_started(house: House, starts: bool) -> None:
    if starts:
        house.thread.start()
    house.thread.stop()
    assert house.ends == ["end"]
