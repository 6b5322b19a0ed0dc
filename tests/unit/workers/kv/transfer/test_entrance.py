"""Who is let in, and what happens while nobody can be; the clock is the test's."""

import logging
import socket
from collections.abc import Iterator

import pytest

from kvasir_workers.kv.transfer.entrance import REST_S, Entrance
from tests.unit.workers.fakes import Clock
from tests.unit.workers.kv.transfer.crowded import CrowdedListener

PATIENCE_S = 20.0


class Door:
    """A listener with one visitor, and whether it is watched."""

    def __init__(self) -> None:
        self.listener = CrowdedListener(socket.create_server(("127.0.0.1", 0)))
        self.visitor = socket.create_connection(self.listener.getsockname(), PATIENCE_S)
        self.clock = Clock()
        self.is_watched = False
        self.entrance = Entrance(self.listener, self.watch, self.unwatch, self.clock)

    def watch(self) -> None:
        assert not self.is_watched
        self.is_watched = True

    def unwatch(self) -> None:
        assert self.is_watched
        self.is_watched = False

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.entrance.tick()

    def close(self) -> None:
        self.listener.close()
        self.visitor.close()


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


def test_whoever_waits_is_let_in_on_a_socket_that_does_not_block(door: Door) -> None:
    door.listener.is_full = False
    connection = door.entrance.accept()
    assert connection is not None
    with connection:
        assert (connection.getblocking(), connection.getpeername()) == (False, door.visitor.getsockname())
    assert door.entrance.accept() is None
    assert door.is_watched


def test_listener_is_left_alone_for_a_while_when_no_file_can_be_opened(door: Door) -> None:
    assert door.entrance.accept() is None
    door.pass_time(REST_S - 0.1)
    assert (door.is_watched, door.entrance.is_resting) == (False, True)
    door.pass_time(0.1)
    assert (door.is_watched, door.entrance.is_resting) == (True, False)


def test_whoever_waited_meanwhile_is_let_in_then(door: Door) -> None:
    door.entrance.accept()
    door.listener.is_full = False
    door.pass_time(REST_S)
    connection = door.entrance.accept()
    assert connection is not None
    connection.close()


def test_full_table_is_told_of_once_until_somebody_was_let_in(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        door.entrance.accept()
        door.pass_time(REST_S)
    (record,) = caplog.records
    assert "Too many open files; raise the limit (ulimit -n)" in record.getMessage()
    door.listener.is_full = False
    connection = door.entrance.accept()
    assert connection is not None
    connection.close()
    door.listener.is_full = True
    door.entrance.accept()
    assert len(caplog.records) == 2


@pytest.mark.parametrize("is_full", [False, True])
def test_listener_that_was_shut_down_is_an_error(door: Door, *, is_full: bool) -> None:
    door.listener.is_full = is_full
    door.listener.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError):
        door.entrance.accept()
