"""A thread that waits on sockets, ZeroMQ's and the system's, and how other threads speak to it."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Any

import zmq

from kvasir_workers.mailbox import Mailbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What the thread does between two looks at its sockets, and when it ends.

    timeout_ms: how long it may wait for something to arrive. on_end: to close what the thread owns.
    """

    timeout_ms: Callable[[], int]
    on_round: Callable[[], None]
    on_end: Callable[[], None]


class SocketThread:
    """From `start` to `stop` it calls the receiver of each socket that has something, and all that is posted.

    register and unregister are for the thread itself, or for before it starts.
    """

    def __init__(self, context: zmq.Context[Any], name: str, rounds: Rounds) -> None:
        self._mailbox = Mailbox(context)
        self._rounds = rounds
        self._poller = zmq.Poller()
        self._receivers: dict[Any, Callable[[], None]] = {}
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._is_stopping = False
        self.register(self._mailbox.socket, self._mailbox.run_posted)

    def register(self, socket: Any, receiver: Callable[[], None], *, to_write: bool = False) -> None:
        """Call receiver whenever the socket has something to read, or (to_write) takes something to be sent."""
        self._poller.register(socket, zmq.POLLOUT if to_write else zmq.POLLIN)
        self._receivers[_key(socket)] = receiver

    def unregister(self, socket: Any) -> None:
        """To be called before the socket is closed."""
        self._poller.unregister(socket)
        del self._receivers[_key(socket)]

    def post(self, work: Callable[[], None]) -> None:
        """Have the thread do something; any thread may ask."""
        self._mailbox.post(work)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """The thread runs: False before `start`, after `stop`, and when an error ended it."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread, if it runs; on_end is called in any case."""
        if self._thread.is_alive():
            self._mailbox.post(self._set_stopping)
            self._thread.join()
        self._rounds.on_end()
        self._mailbox.close()

    def _set_stopping(self) -> None:
        self._is_stopping = True

    def _run(self) -> None:
        while not self._is_stopping:
            for socket, _ in self._poller.poll(self._rounds.timeout_ms()):
                if socket in self._receivers:  # an earlier one of this round may have closed it
                    self._receivers[socket]()
            self._rounds.on_round()


def _key(socket: Any) -> Any:
    """By what the poller tells of it: a socket of the system's by its number."""
    return socket if isinstance(socket, zmq.Socket) else socket.fileno()
