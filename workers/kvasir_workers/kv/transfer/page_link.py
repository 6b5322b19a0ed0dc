"""Sealed frames over a plain socket between a leader and a rank on another host.

    header length | sealed length | header | sealed content

The header can be read by others but not changed, the content neither. Each direction has a key of its own.
"""

import secrets
import struct
from contextlib import suppress
from dataclasses import dataclass
from socket import SHUT_RDWR, socket

from kvasir_protocol.errors import WireError
from kvasir_protocol.wire import MAX_MESSAGE_BYTES
from kvasir_workers.kv.transfer.sealing import KEY_BYTES, PageSeal

SIZES = struct.Struct("<IQ")


def frame_sizes(prefix: bytes | bytearray, most_header: int, most_sealed: int) -> tuple[int, int]:
    """Of a frame's header and sealed content, in bytes. Raises WireError if one of them is larger than it may be."""
    header_size, sealed_size = SIZES.unpack(prefix)
    if header_size > most_header or sealed_size > most_sealed:
        raise WireError(
            f"a frame of {header_size} and {sealed_size} bytes; the most is {most_header} and {most_sealed}"
        )
    return header_size, sealed_size


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """One for what is asked, one for what is answered: with one key both would number their frames alike."""

    asks: bytes
    answers: bytes

    @classmethod
    def fresh(cls) -> "LinkKeys":
        return cls(secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES))

    @classmethod
    def from_bytes(cls, content: bytes) -> "LinkKeys":
        """What `to_bytes` gave. Raises WireError if it is something else."""
        if len(content) != 2 * KEY_BYTES:
            raise WireError(f"the keys of a page link have {2 * KEY_BYTES} bytes, got {len(content)}")
        return cls(content[:KEY_BYTES], content[KEY_BYTES:])

    def to_bytes(self) -> bytes:
        return self.asks + self.answers


class SealedLink:
    """One end. Raises OSError when the other is gone or takes too long, WireError for what it did not seal."""

    def __init__(self, link: socket, sends: bytes, receives: bytes) -> None:
        """Owns the link from here on. sends, receives: the keys of the two directions."""
        self._link = link
        self._out = PageSeal(sends)
        self._in = PageSeal(receives)

    def send(self, header: bytes, content: memoryview) -> None:
        sealed = self._out.seal(header, content)
        self._link.sendall(SIZES.pack(len(header), len(sealed)) + header)
        self._link.sendall(sealed)

    def receive(self) -> tuple[bytes, memoryview]:
        """The next frame's header and content."""
        header_size, sealed_size = frame_sizes(self._read(SIZES.size), MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES)
        header, sealed = bytes(self._read(header_size)), self._read(sealed_size)
        return header, self.open(header, sealed)

    def open(self, header: bytes, sealed: bytearray) -> memoryview:
        """The content of the next frame, which somebody else has read. Raises WireError if the seal is broken."""
        content = self._in.open(header, memoryview(sealed))
        if content is None:
            raise WireError("a frame with a broken seal")
        return content

    def _read(self, num_bytes: int) -> bytearray:
        content = bytearray(num_bytes)
        rest = memoryview(content)
        while rest:
            num_read = self._link.recv_into(rest)
            if not num_read:
                raise ConnectionResetError("the other side has closed the link")
            rest = rest[num_read:]
        return content

    def set_patience(self, patience_s: float | None) -> None:
        """For the other side to take or to send the next bytes; None: for ever."""
        self._link.settimeout(patience_s)

    def hang_up(self) -> None:
        """Wake whoever waits here, in whatever thread: nothing more comes."""
        with suppress(OSError):
            self._link.shutdown(SHUT_RDWR)

    def close(self) -> None:
        self._link.close()
