"""Page contents encrypted and authenticated outside of the socket, at the speed of memory.

AES-GCM (NIST SP 800-38D) with a key that serves one push: 10 GB/s on one core, where CURVE brings 0.4.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 16
TAG_BYTES: Final = 16
_NONCE_BYTES: Final = 12


class PageSeal:
    """One side of one push: seals, or opens, in the order in which the other does.

    Frames are numbered on both sides, so that none can be repeated, left out or taken for another's.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._number = 0

    def seal(self, header: bytes, content: memoryview) -> bytes:
        """content sealed; header is not hidden, but the seal breaks if it is changed."""
        sealed = self._cipher.encrypt(self._nonce(), content, header)
        self._number += 1
        return sealed

    def open(self, header: bytes, sealed: memoryview) -> bytes | None:
        """What was sealed, or None if it was not by the other side, or was not the next."""
        try:
            content = self._cipher.decrypt(self._nonce(), sealed, header)
        except (InvalidTag, ValueError):
            return None
        self._number += 1
        return content

    def _nonce(self) -> bytes:
        return self._number.to_bytes(_NONCE_BYTES, "big")
