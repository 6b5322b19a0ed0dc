"""Pages on disk: one file of slots that has no name, so that nothing is left of it when its process ends.

    slot i at i * record_bytes:  [ "KVPG" | version u16 | reserved u16 | CRC-32 u32 | name 32 bytes | content ]

The checksum is over name and content. It finds what a disk or a file system spoils; against somebody who may write into
the process's open files nothing would help.
"""

import os
import struct
import tempfile
import zlib
from pathlib import Path

from kvasir_protocol.errors import ConfigError
from kvasir_protocol.ids import PageHash

_HEADER = struct.Struct("<4sHHI32s")
_MAGIC = b"KVPG"
_VERSION = 1

RECORD_OVERHEAD_BYTES = _HEADER.size


class CorruptPage(Exception):
    """What was read is not what was written."""


class PageFile:
    """Reads and writes whole pages of page_bytes; not more than one thread at a time."""

    def __init__(self, descriptor: int, page_bytes: int) -> None:
        self._descriptor = descriptor
        self._page_bytes = page_bytes
        self._record_bytes = RECORD_OVERHEAD_BYTES + page_bytes

    @classmethod
    def create(cls, directory: Path, page_bytes: int) -> "PageFile":
        """A new file in the directory, which is made if it is missing. Raises ConfigError if it can't be had."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(_open_nameless(directory), page_bytes)
        except OSError as error:
            raise ConfigError(f"engine.disk_cache_path {str(directory)!r} can't be used: {error.strerror}") from error

    def fileno(self) -> int:
        return self._descriptor

    def write(self, slot: int, name: PageHash, content: memoryview) -> None:
        """Raises OSError."""
        checksum = zlib.crc32(content, zlib.crc32(name))
        header = _HEADER.pack(_MAGIC, _VERSION, 0, checksum, name)
        num_written = os.pwritev(self._descriptor, [header, content], slot * self._record_bytes)
        if num_written != self._record_bytes:
            raise OSError(f"only {num_written} of {self._record_bytes} bytes were written")

    def read(self, slot: int, name: PageHash, content: memoryview) -> None:
        """Fill content with the page. Raises CorruptPage if it is not the one of this name as it was written, or
        OSError."""
        header = bytearray(RECORD_OVERHEAD_BYTES)
        num_read = os.preadv(self._descriptor, [header, content], slot * self._record_bytes)
        if num_read != self._record_bytes:
            raise CorruptPage(f"{num_read} of {self._record_bytes} bytes are there")
        magic, version, _, checksum, stored_name = _HEADER.unpack(header)
        if (magic, version, stored_name) != (_MAGIC, _VERSION, name):
            raise CorruptPage("the header is another page's")
        if zlib.crc32(content, zlib.crc32(name)) != checksum:
            raise CorruptPage("the checksum differs")

    def close(self) -> None:
        os.close(self._descriptor)


def _open_nameless(directory: Path) -> int:
    """A file of this process alone; some file systems (NFS, older overlays) can only take its name away afterwards."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        descriptor, name = tempfile.mkstemp(prefix="kvasir-pages-", dir=directory)
        os.unlink(name)
        return descriptor
