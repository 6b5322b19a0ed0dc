"""How a leader's plans reach the other ranks: small frames in order, one to all."""

import select
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from socket import MSG_PEEK, socket
from typing import Protocol

from kvasir_protocol.errors import RankLost, WireError
from kvasir_protocol.wire import MAX_MESSAGE_BYTES
from kvasir_workers.idle_work import IdleWork, nothing_to_do

_LENGTH = struct.Struct("<I")

_LOOK_S = 0.1
"""How often those who wait for a plan look about."""


def nowhere() -> None:
    """Where nothing but the next plan is to be seen."""


def frame_of(content: bytes) -> bytes:
    """As it goes over a stream socket: its length, then itself."""
    return _LENGTH.pack(len(content)) + content


class PlanSender(Protocol):
    """The leader's side."""

    def send(self, frame: bytes) -> None:
        """To every follower. Raises RankLost, naming the one that takes no more."""
        ...

    def close(self) -> None: ...


class PlanReceiver(Protocol):
    """A follower's side."""

    def receive(self, look: Callable[[], None] = nowhere, idle_work: IdleWork = nothing_to_do) -> bytes | None:
        """The next frame, however long it takes; None when the leader is gone.

        look: called now and then meanwhile; what it raises ends the wait. idle_work: called when none has come for a
        while, which does not happen between steps, and then on and on; a frame that comes meanwhile waits for one call.
        """
        ...


class SocketSender:
    """Over a connected stream socket to each follower, which closes when either side dies."""

    def __init__(self, sockets: Mapping[int, socket], deadline_s: float) -> None:
        """sockets: by rank; owned from here on. deadline_s: for a follower to take a frame."""
        self._sockets = dict(sockets)
        for link in self._sockets.values():
            link.settimeout(deadline_s)

    def send(self, frame: bytes) -> None:
        for rank, link in self._sockets.items():
            try:
                link.sendall(frame_of(frame))
            except TimeoutError:
                raise RankLost(f"rank {rank} takes no more plans: it hangs", (rank,)) from None
            except OSError as error:
                raise RankLost(f"rank {rank} is gone: {error.strerror}", (rank,)) from None

    def close(self) -> None:
        for link in self._sockets.values():
            link.close()


class SocketReceiver:
    """The other end of one of them."""

    def __init__(self, link: socket) -> None:
        self._link = link

    def receive(self, look: Callable[[], None] = nowhere, idle_work: IdleWork = nothing_to_do) -> bytes | None:
        wait_s = _LOOK_S
        while not select.select([self._link], [], [], wait_s)[0]:
            look()
            wait_s = 0 if idle_work() else _LOOK_S
        header = self._read(_LENGTH.size)
        if header is None:
            return None
        (length,) = _LENGTH.unpack(header)
        if length > MAX_MESSAGE_BYTES:
            raise WireError(f"a frame of {length} bytes; the most is {MAX_MESSAGE_BYTES}")
        return self._read(length)

    def is_over(self) -> bool:
        """The leader is gone, and has left nothing to be received."""
        readable, _, _ = select.select([self._link], [], [], 0)
        try:
            return bool(readable) and not self._link.recv(1, MSG_PEEK)
        except ConnectionResetError:
            return True

    def _read(self, num_bytes: int) -> bytes | None:
        """None if the other side closes before the end."""
        content = bytearray()
        with suppress(ConnectionResetError):
            while len(content) < num_bytes:
                part = self._link.recv(num_bytes - len(content))
                if not part:
                    return None
                content += part
            return bytes(content)
        return None
