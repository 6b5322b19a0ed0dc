"""Page contents over TCP: a plain connection for each push.

    writer -> decode side     hello     generation (8 bytes), proof of the granted key (16)
                              frames    lengths of header and content (4 each), header (a PushPages), content,
                                        block by block if it is sealed (`sealing.py`)

ZeroMQ, which carries the words, would copy contents twice more, and hold up one push while another's wait to be read.
Neither end ever waits: what the system does not take or have now is left for the next turn.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EINPROGRESS
from socket import AF_INET, AF_INET6, IPPROTO_TCP, SO_SNDBUF, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY, socket
from typing import Protocol
from urllib.parse import urlsplit

from kvasir_protocol.errors import WireError
from kvasir_protocol.ids import Generation
from kvasir_protocol.messages import PushPages
from kvasir_workers.kv.transfer.pieces import Pieces, with_room
from kvasir_workers.kv.transfer.sealing import PROOF_BYTES, Opening

HELLO = struct.Struct(f"<Q{PROOF_BYTES}s")
LENGTHS = struct.Struct("<II")

MAX_HEADER_BYTES = 2**16
"""Of a PushPages with more pages than any frame has."""

SAME_HOST_BYTES = 2**19
"""What the system may keep on its way to the same host, which it doubles: there is no distance to cover, and what still
lies in a cache costs less to read."""

TURN_BYTES = 2**21
"""Read from one connection before others have their turn: about a millisecond."""


class PageLine:
    """The writer's end; holds one frame at a time."""

    def __init__(self, endpoint: str, generation: Generation, proof: bytes) -> None:
        """Begin to connect. Raises OSError or ValueError if endpoint is no address ("tcp://host:port")."""
        address = urlsplit(endpoint)
        if address.scheme != "tcp" or not address.hostname or not address.port:
            raise ValueError(f"{endpoint!r} is no address")
        self.socket = socket(AF_INET6 if ":" in address.hostname else AF_INET, SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        if (code := self.socket.connect_ex((address.hostname, address.port))) not in (0, EINPROGRESS):
            self.socket.close()
            raise OSError(code, f"{endpoint} can't be reached")
        if self.socket.getsockname()[0] == address.hostname:
            self.socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SAME_HOST_BYTES)
        self._unsent = Pieces([memoryview(HELLO.pack(generation, proof))])
        self._blocks: Iterator[Sequence[memoryview]] = iter(())

    @property
    def is_idle(self) -> bool:
        """The system has taken all: memory that was put here may be written again."""
        return not self._unsent

    def put(self, header: bytes, num_bytes: int, blocks: Iterable[Sequence[memoryview]]) -> None:
        """The next frame; to be called when the last one is gone.

        blocks: its contents, of num_bytes in all. Each is asked for when the system has taken the one before.
        """
        self._blocks = iter(blocks)
        start = memoryview(LENGTHS.pack(len(header), num_bytes) + header)
        self._unsent.add([start, *next(self._blocks, ())])

    def flush(self) -> bool:
        """Hand over what the system takes; whether that was anything. Raises OSError if the connection is broken."""
        has_moved = False
        while self._unsent:
            try:
                self._unsent.pass_over(self.socket.sendmsg(self._unsent.next()))
            except BlockingIOError:
                break
            has_moved = True
            if not self._unsent:
                self._unsent.add(next(self._blocks, ()))
        return has_moved

    def close(self) -> None:
        """The system still brings over what it has taken."""
        self._unsent, self._blocks = Pieces([]), iter(())
        self.socket.close()


@dataclass(frozen=True, slots=True)
class Landing:
    """Where a frame's contents go.

    places: memory for them, piece after piece. opening: what they are given to instead if they come sealed.
    packed: where they are then if that is not the memory of the pages, to which they have yet to be brought.
    """

    message: PushPages
    places: Sequence[memoryview]
    opening: Opening | None = None
    packed: memoryview | None = None


class PageTaker(Protocol):
    """What a reader needs of the decode side. All raise WireError for what ends the connection."""

    def greet(self, generation: Generation, proof: bytes) -> None:
        """Whoever says this wants to bring contents for the reservation."""
        ...

    def awaits_contents(self, generation: Generation) -> bool: ...

    def land(self, generation: Generation, header: bytes, num_bytes: int) -> Landing: ...

    def take(self, landing: Landing) -> None:
        """All has come, or a block of it whose seal is broken."""
        ...


class PageReader:
    """The decode side's end of one connection."""

    def __init__(self, connection: socket, taker: PageTaker) -> None:
        """connection: does not block; owned from here on."""
        self.socket = connection
        self.generation: Generation | None = None
        self._taker = taker
        self._buffer = bytearray()
        self._wanted = Pieces([])
        self._then: Callable[[], None] = lambda: None
        self._want(HELLO.size, self._greet)

    def read(self) -> None:
        """Take in what has come, of one turn at the most. Raises EOFError, OSError or WireError when it is over."""
        if self.generation is not None and not self._taker.awaits_contents(self.generation):
            raise EOFError  # what we would write to may be another's by now
        num_left = TURN_BYTES
        while num_left > 0:
            try:
                num_bytes = self.socket.recvmsg_into(self._wanted.next())[0]
            except BlockingIOError:
                return
            if not num_bytes:
                raise EOFError
            num_left -= num_bytes
            self._wanted.pass_over(num_bytes)
            if not self._wanted:
                self._then()

    def close(self) -> None:
        self.socket.close()

    def _want(self, num_bytes: int, then: Callable[[], None]) -> None:
        self._buffer = with_room(self._buffer, num_bytes)
        self._wanted, self._then = Pieces([memoryview(self._buffer)[:num_bytes]]), then

    def _greet(self) -> None:
        generation, proof = HELLO.unpack_from(self._buffer)
        self._taker.greet(Generation(generation), proof)
        self.generation = Generation(generation)
        self._want(LENGTHS.size, self._measure)

    def _measure(self) -> None:
        num_header_bytes, num_bytes = LENGTHS.unpack_from(self._buffer)
        if not 0 < num_header_bytes <= MAX_HEADER_BYTES:
            raise WireError(f"a frame of pages with a header of {num_header_bytes} bytes")
        self._want(num_header_bytes, lambda: self._land(num_header_bytes, num_bytes))

    def _land(self, num_header_bytes: int, num_bytes: int) -> None:
        assert self.generation is not None, "contents before the hello"
        header = bytes(memoryview(self._buffer)[:num_header_bytes])
        landing = self._taker.land(self.generation, header, num_bytes)
        if landing.opening is None:
            self._wanted, self._then = Pieces(landing.places), lambda: self._take(landing)
        else:
            self._want_block(landing, landing.opening)

    def _want_block(self, landing: Landing, opening: Opening) -> None:
        self._want(opening.num_wanted, lambda: self._open(landing, opening))

    def _open(self, landing: Landing, opening: Opening) -> None:
        opening.open(memoryview(self._buffer)[: opening.num_wanted])
        if opening.num_wanted:
            self._want_block(landing, opening)
        else:
            self._take(landing)

    def _take(self, landing: Landing) -> None:
        self._taker.take(landing)
        self._want(LENGTHS.size, self._measure)
