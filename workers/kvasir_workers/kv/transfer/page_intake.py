"""Where a replica takes in page contents that come over TCP: a listener, and a reader for each push."""

import logging
from collections.abc import Callable
from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

from kvasir_protocol.errors import ConfigError, WireError
from kvasir_workers.kv.transfer.entrance import Entrance
from kvasir_workers.kv.transfer.page_stream import PageReader, PageTaker
from kvasir_workers.socket_thread import SocketThread

_log = logging.getLogger(__name__)

GREETING_S = 5.0
"""For a connection to say what it is for: it comes from whoever reaches the port."""

MOST_UNGREETED = 64
"""Connections that have not said it yet; one more, and the oldest is closed."""

_BACKLOG = 128


def listen_for_pages(host: str) -> tuple[socket, str]:
    """A listening socket at a port of the system's choosing, and its address. Raises ConfigError if it can't be had."""
    listener = socket(AF_INET6 if ":" in host else AF_INET, SOCK_STREAM)
    try:
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listener.bind((host, 0))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"can't listen on {host}: {error.strerror}") from error
    listener.setblocking(False)
    address, port = listener.getsockname()[:2]
    return listener, f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


class PageIntake:
    """All connections of one replica; in its thread, which owns them. clock counts seconds."""

    def __init__(self, listener: socket, taker: PageTaker, thread: SocketThread, clock: Callable[[], float]) -> None:
        """listener: owned from here on."""
        self._listener = listener
        self._taker = taker
        self._thread = thread
        self._clock = clock
        self._readers: dict[PageReader, float] = {}
        self._entrance = Entrance(
            listener, lambda: thread.register(listener, self._accept), lambda: thread.unregister(listener), clock
        )

    def tick(self) -> None:
        """Let go of connections that never said what they are for, or whose reservation has ended."""
        self._entrance.tick()
        now = self._clock()
        for reader, accepted_at in list(self._readers.items()):
            if reader.generation is None:
                is_over = now >= accepted_at + GREETING_S
            else:
                is_over = not self._taker.awaits_contents(reader.generation)
            if is_over:
                self._close(reader)

    def close(self) -> None:
        for reader in list(self._readers):
            self._close(reader)
        self._listener.close()

    def _accept(self) -> None:
        if (connection := self._entrance.accept()) is None:
            return
        ungreeted = [reader for reader in self._readers if reader.generation is None]
        if len(ungreeted) >= MOST_UNGREETED:
            self._close(ungreeted[0])
        reader = PageReader(connection, self._taker)
        self._readers[reader] = self._clock()
        self._thread.register(connection, lambda: self._read(reader))

    def _read(self, reader: PageReader) -> None:
        try:
            reader.read()
        except WireError as error:
            _log.warning("a connection for page contents is closed: %s", error)
            self._close(reader)
        except (EOFError, OSError):
            self._close(reader)

    def _close(self, reader: PageReader) -> None:
        if self._readers.pop(reader, None) is not None:
            self._thread.unregister(reader.socket)
            reader.close()
