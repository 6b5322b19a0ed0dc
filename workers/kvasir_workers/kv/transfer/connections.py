"""A pusher's sockets to the decode replicas, for words."""

import logging
import secrets
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import zmq

from kvasir_protocol import sockets
from kvasir_protocol.errors import WireError
from kvasir_protocol.messages import MAX_DEADLINE_S, Message
from kvasir_protocol.wire import decode, encode
from kvasir_workers.socket_thread import SocketThread

_log = logging.getLogger(__name__)

_FAREWELL_MS = 200
"""Time for the last Quiet to leave: without it the other side keeps the pages in quarantine until we are dead."""

IDLE_S = 2 * MAX_DEADLINE_S
"""A connection without a word for so long is closed: its replica may have left for good. Whoever still waits for our
Quiet has asked for it by then, since it asks once in each deadline."""


@dataclass(slots=True)
class _Connection:
    words: Any
    last_word: float


class Connections:
    """Opened as needed, by the endpoint of the other side's words; all in the thread that waits on them.

    on_message: what another side says.
    """

    def __init__(
        self,
        secret: bytes,
        clock: Callable[[], float],
        on_message: Callable[[str, Message], None],
    ) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._secret = secret
        self._clock = clock
        self._on_message = on_message
        # After a broken connection the other side must take our Quiet for that of the same writer.
        self._name = b"pusher-" + secrets.token_hex(8).encode()
        self._open: dict[str, _Connection] = {}
        self.thread: SocketThread

    def __contains__(self, endpoint: object) -> bool:
        return endpoint in self._open

    def send(self, endpoint: str, message: Message) -> None:
        """Say something; lost if the other side takes nothing or endpoint is no address."""
        try:
            self._connection(endpoint).words.send(encode(message), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # Its queue is full, or it is no address at all: a ticket is another's word.
            _log.warning("%s takes no %s: %s", endpoint, type(message).__name__, error.strerror)

    def close_idle(self, used: Container[str]) -> None:
        """Let go of those that said nothing for long and aren't used."""
        for endpoint, connection in list(self._open.items()):
            if self._clock() - connection.last_word >= IDLE_S and endpoint not in used:
                self.close(endpoint)

    def close(self, endpoint: str) -> None:
        """Let go of one, if it is open: its socket would try for ever to reach a replica that has left."""
        connection = self._open.pop(endpoint, None)
        if connection is not None:
            self.thread.unregister(connection.words)
            connection.words.close(linger=_FAREWELL_MS)

    def close_all(self) -> None:
        for endpoint in list(self._open):
            self.close(endpoint)

    def _connection(self, endpoint: str) -> _Connection:
        if endpoint not in self._open:
            socket = sockets.connect_client(self.context, self._secret, endpoint, self._name)
            self._open[endpoint] = _Connection(socket, self._clock())
            self.thread.register(socket, lambda: self._hear(endpoint))
        self._open[endpoint].last_word = self._clock()
        return self._open[endpoint]

    def _hear(self, endpoint: str) -> None:
        connection = self._open[endpoint]
        connection.last_word = self._clock()
        try:
            message = decode(connection.words.recv())
        except WireError as error:
            _log.warning("bad message from %s dropped: %s", endpoint, error)
            return
        self._on_message(endpoint, message)
