"""Whoever has connected to a listener, until one of them shows by its first frame that it knows the keys."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from selectors import EVENT_READ, DefaultSelector
from socket import IPPROTO_TCP, TCP_NODELAY, socket

from kvasir_protocol.errors import WireError
from kvasir_workers.kv.transfer.entrance import Entrance
from kvasir_workers.kv.transfer.page_intake import GREETING_S, MOST_UNGREETED
from kvasir_workers.kv.transfer.page_link import SIZES, LinkKeys, SealedLink, frame_sizes
from kvasir_workers.kv.transfer.sealing import TAG_BYTES

_log = logging.getLogger(__name__)

MOST_FIRST_BYTES = 1024
"""Of a first frame's header, which asks for one page; it comes without content."""

_LOOK_S = 1.0
"""How often deadlines are looked at when nothing arrives."""


@dataclass(eq=False, slots=True)
class _Guest:
    """Has said something, or nothing yet; until its deadline for the whole first frame."""

    connection: socket
    deadline: float
    said: bytearray = field(default_factory=bytearray)
    header_size: int = 0
    num_wanted: int = SIZES.size

    def hear(self) -> bool:
        """Take what has come; whether the frame is whole. Raises OSError if it is gone, WireError if too large."""
        while len(self.said) < self.num_wanted:
            try:
                content = self.connection.recv(self.num_wanted - len(self.said))
            except BlockingIOError:
                return False
            if not content:
                raise ConnectionResetError("it has hung up")
            self.said += content
            if len(self.said) == SIZES.size:
                self.header_size, sealed_size = frame_sizes(self.said, MOST_FIRST_BYTES, TAG_BYTES)
                self.num_wanted += self.header_size + sealed_size
        return True

    @property
    def first_frame(self) -> tuple[bytes, bytearray]:
        """Its header and sealed content, once it is whole."""
        frame = self.said[SIZES.size :]
        return bytes(frame[: self.header_size]), frame[self.header_size :]


class WaitingRoom:
    """All are listened to at once, so that none keeps another out. clock counts seconds."""

    def __init__(self, listener: socket, keys: LinkKeys, clock: Callable[[], float]) -> None:
        """listener: stays its owner's, who shuts it down to end the wait."""
        self._listener = listener
        self._keys = keys
        self._clock = clock
        self._guests: dict[socket, _Guest] = {}
        self._selector = DefaultSelector()
        listener.setblocking(False)
        self._entrance = Entrance(
            listener,
            lambda: self._selector.register(listener, EVENT_READ),
            lambda: self._selector.unregister(listener),
            clock,
        )

    def await_first(self) -> tuple[SealedLink, bytes]:
        """The link of the first who knows the keys, which waits for nothing yet, and the header of what it has asked.

        Raises OSError once the listener is shut down.
        """
        while (first := self.look()) is None:
            pass
        return first

    def look(self) -> tuple[SealedLink, bytes] | None:
        """Wait once for something to come, and let go of those whose time is over. Raises OSError as above."""
        self._entrance.tick()
        has_deadlines = bool(self._guests) or self._entrance.is_resting
        for key, _ in self._selector.select(_LOOK_S if has_deadlines else None):
            if key.fileobj is self._listener:
                self._accept()
            elif (guest := self._guests.get(key.data)) and (first := self._hear(guest)):
                return first
        now = self._clock()
        for guest in [guest for guest in self._guests.values() if now >= guest.deadline]:
            self._turn_away(guest, f"it did not say who it is for {GREETING_S:g} s")
        return None

    def close(self) -> None:
        """Let go of all who wait."""
        for connection in self._guests:
            connection.close()
        self._guests.clear()
        self._selector.close()

    def _accept(self) -> None:
        if (connection := self._entrance.accept()) is None:
            return
        connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        if len(self._guests) >= MOST_UNGREETED:
            self._turn_away(next(iter(self._guests.values())), "too many wait")
        self._guests[connection] = _Guest(connection, self._clock() + GREETING_S)
        self._selector.register(connection, EVENT_READ, connection)

    def _hear(self, guest: _Guest) -> tuple[SealedLink, bytes] | None:
        try:
            if not guest.hear():
                return None
            link = SealedLink(guest.connection, sends=self._keys.answers, receives=self._keys.asks)
            header, sealed = guest.first_frame
            link.open(header, sealed)
        except (OSError, WireError) as error:
            self._turn_away(guest, str(error))
            return None
        self._forget(guest)
        return link, header

    def _turn_away(self, guest: _Guest, reason: str) -> None:
        _log.warning("whoever connected is not the leader: %s", reason)
        self._forget(guest)
        guest.connection.close()

    def _forget(self, guest: _Guest) -> None:
        del self._guests[guest.connection]
        self._selector.unregister(guest.connection)
