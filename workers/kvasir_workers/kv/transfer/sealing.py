"""Page contents encrypted and authenticated outside of the socket, at the speed of memory.

AES-GCM (NIST SP 800-38D) with a key that serves one push, or one direction of a link between a leader and a rank:
10 GB/s on one core, where CURVE brings 0.4.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kvasir_workers.kv.transfer.pieces import Contents

KEY_BYTES: Final = 16
TAG_BYTES: Final = 16
PROOF_BYTES: Final = 16
_NONCE_BYTES: Final = 12

BLOCK_BYTES: Final = 2**18
"""Contents of pages are sealed so many bytes at a time: what is read, sealed and sent stays in a core's own cache."""


def proof_of(key: bytes) -> bytes:
    """Shows that one knows a key, and doesn't tell it."""
    return hashlib.blake2b(key=key, digest_size=PROOF_BYTES, person=b"kvasir-pages").digest()


class PageSeal:
    """One side of one push or link: seals, or opens, in the order in which the other does.

    Messages are numbered on both sides, so that none can be repeated, left out or taken for another's.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._number = 0

    def seal(self, header: bytes, content: memoryview, room: bytearray | None = None) -> memoryview:
        """content sealed, TAG_BYTES longer; in room, if it is given, which may be too large.

        header is not hidden, but the seal breaks if it is changed.
        """
        num_bytes = len(content) + TAG_BYTES
        sealed = memoryview(bytearray(num_bytes) if room is None else room)[:num_bytes]
        self._cipher.encrypt_into(self._nonce(), content, header, sealed)
        self._number += 1
        return sealed

    def open(self, header: bytes, sealed: memoryview, room: bytearray | memoryview | None = None) -> memoryview | None:
        """What was sealed, in room as for `seal`; None if it was not by the other side, or was not the next."""
        num_bytes = max(0, len(sealed) - TAG_BYTES)
        content = memoryview(bytearray(num_bytes) if room is None else room)[:num_bytes]
        try:
            self._cipher.decrypt_into(self._nonce(), sealed, header, content)
        except (InvalidTag, ValueError):
            return None
        self._number += 1
        return content

    def _nonce(self) -> bytes:
        return self._number.to_bytes(_NONCE_BYTES, "big")


def sealed_size(num_bytes: int) -> int:
    """Of contents that are sealed block by block."""
    return num_bytes + TAG_BYTES * -(-num_bytes // BLOCK_BYTES)


def sealed_blocks(seal: PageSeal, header: bytes, contents: Contents) -> Iterator[memoryview]:
    """Contents sealed block by block. A block lasts until the next one is asked for."""
    num_bytes = min(BLOCK_BYTES, contents.num_bytes)
    room, sealed = memoryview(bytearray(num_bytes)), bytearray(num_bytes + TAG_BYTES)
    while contents.num_bytes:
        yield seal.seal(header, contents.take(room), sealed)


class Opening:
    """Contents that come sealed block by block, brought to where they belong.

    Nothing is written there that the seal does not vouch for. is_broken: a block was not sealed by the other side, or
    is not the next; nothing more is wanted then.
    """

    def __init__(self, seal: PageSeal, header: bytes, places: Contents) -> None:
        self._seal = seal
        self._header = header
        self._places = places
        self._room = bytearray(min(BLOCK_BYTES, places.num_bytes))
        self.is_broken = False

    @property
    def num_wanted(self) -> int:
        """Bytes of the next sealed block; 0 if none is to come."""
        num_left = 0 if self.is_broken else self._places.num_bytes
        return min(BLOCK_BYTES, num_left) + TAG_BYTES if num_left else 0

    def open(self, sealed: memoryview) -> None:
        """Put the next block in its place."""
        content = self._seal.open(self._header, sealed, self._room)
        if content is None:
            self.is_broken = True
        else:
            self._places.fill(content)
