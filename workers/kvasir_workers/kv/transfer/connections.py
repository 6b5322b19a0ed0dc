"""A pusher's sockets to the decode replicas: one for words, and one for page contents where TCP has to carry them."""

import logging
import secrets
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import zmq

from kvasir_protocol import sockets
from kvasir_protocol.errors import WireError
from kvasir_protocol.messages import MAX_DEADLINE_S, Message, PagesTaken
from kvasir_protocol.wire import decode, encode
from kvasir_workers.socket_thread import SocketThread

_log = logging.getLogger(__name__)

WINDOW_BYTES = 16 * 2**20
"""Contents that a decode replica has not read yet: enough to fill a link of 10 GB/s for 1.6 ms; more would only wait
in the memory of both sides, and be sent in vain when a push ends."""

_FAREWELL_MS = 200
"""Time for the last Quiet to leave: without it the other side keeps the pages in quarantine until we are dead."""

IDLE_S = 2 * MAX_DEADLINE_S
"""A connection without a word for so long is closed: its replica may have left for good. Whoever still waits for our
Quiet has asked for it by then, since it asks once in each deadline."""


@dataclass(slots=True)
class _Connection:
    words: Any
    last_word: float
    pages: Any = None
    unread_bytes: int = 0


class Connections:
    """Opened as needed, by the endpoint of the other side's words; all in the thread that waits on them.

    on_message: what another side says. on_room: it has read contents, more may be sent.
    """

    def __init__(
        self,
        secret: bytes,
        clock: Callable[[], float],
        on_message: Callable[[str, Message], None],
        on_room: Callable[[str], None],
    ) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._secret = secret
        self._clock = clock
        self._on_message = on_message
        self._on_room = on_room
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

    def has_room(self, endpoint: str) -> bool:
        """Whether contents may be sent now; else on_room will tell."""
        return endpoint not in self._open or self._open[endpoint].unread_bytes < WINDOW_BYTES

    def send_pages(self, endpoint: str, page_endpoint: str, header: bytes, sealed: bytes) -> None:
        """Send contents to where the other side at endpoint takes them. Raises zmq.ZMQError if that is no address."""
        connection = self._connection(endpoint)
        if connection.pages is None:
            connection.pages = sockets.connect_pages(self.context, self._secret, page_endpoint)
            self.thread.register(connection.pages, lambda: self._hear_taken(endpoint))
        connection.unread_bytes += len(sealed)
        connection.pages.send_multipart([header, sealed], zmq.NOBLOCK, copy=False)

    def drop_pages(self, endpoint: str) -> None:
        """Let go of the way for contents, and of all that nobody said was read; the next contents open a new one."""
        connection = self._open.get(endpoint)
        if connection is not None and connection.pages is not None:
            self.thread.unregister(connection.pages)
            connection.pages.close(linger=0)
            connection.pages, connection.unread_bytes = None, 0

    def close_idle(self, used: Container[str]) -> None:
        """Let go of those that said nothing for long and aren't used."""
        for endpoint, connection in list(self._open.items()):
            if self._clock() - connection.last_word >= IDLE_S and endpoint not in used:
                self.close(endpoint)

    def close(self, endpoint: str) -> None:
        """Let go of one, if it is open: its sockets would try for ever to reach a replica that has left."""
        connection = self._open.pop(endpoint, None)
        if connection is None:
            return
        for socket in (connection.words, connection.pages):
            if socket is not None:
                self.thread.unregister(socket)
                socket.close(linger=_FAREWELL_MS)

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

    def _hear_taken(self, endpoint: str) -> None:
        connection = self._open[endpoint]
        connection.last_word = self._clock()
        try:
            message = decode(connection.pages.recv())
            if not isinstance(message, PagesTaken):
                raise WireError(f"the page socket says PagesTaken only, got {type(message).__name__}")
        except WireError as error:
            _log.warning("bad message from the page socket of %s dropped: %s", endpoint, error)
            return
        connection.unread_bytes = max(0, connection.unread_bytes - max(0, message.num_bytes))
        self._on_room(endpoint)
