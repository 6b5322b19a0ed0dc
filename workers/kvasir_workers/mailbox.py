"""Work handed to a thread that waits on ZeroMQ sockets."""

from collections import deque
from collections.abc import Callable
from itertools import count
from threading import Lock
from typing import Any

import zmq

_numbers = count()


class Mailbox:
    """Any thread posts, the owner of `socket` runs what was posted, in order."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        address = f"inproc://mailbox-{next(_numbers)}"
        self.socket = context.socket(zmq.PULL)
        self.socket.bind(address)
        self._bell = context.socket(zmq.PUSH)
        self._bell.connect(address)
        self._lock = Lock()
        self._posted: deque[Callable[[], None]] = deque()
        self._is_closed = False

    def post(self, work: Callable[[], None]) -> None:
        """Hand work over; after `close` it is dropped."""
        with self._lock:
            if self._is_closed:
                return
            self._posted.append(work)
            if len(self._posted) == 1:
                self._bell.send(b"")

    def run_posted(self) -> None:
        """Run all that was posted; to be called when `socket` is readable."""
        self.socket.recv()
        with self._lock:
            posted, self._posted = self._posted, deque()
        for work in posted:
            work()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._bell.close(linger=0)
            self.socket.close(linger=0)
