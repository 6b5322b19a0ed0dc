"""Memory that lies in pieces, gone through once from its first byte to its last: pages, as they are sent or filled."""

from collections.abc import Iterable
from typing import Protocol

_MOST_AT_A_TIME = 64
"""Pieces for one system call, which takes about a megabyte: more of them are looked at again and again."""


def with_room(buffer: bytearray, num_bytes: int) -> bytearray:
    """The same buffer if it has so many bytes, else a new one: new memory costs the system more than a copy to it."""
    return buffer if len(buffer) >= num_bytes else bytearray(num_bytes)


class Contents(Protocol):
    """What pages hold, gone through once: by Pieces, or by the kernel. num_bytes: left."""

    num_bytes: int

    def take(self, room: memoryview) -> memoryview:
        """Read what comes next, as much as fits in room, which may be used for it."""
        ...

    def fill(self, content: memoryview) -> None:
        """Write what comes next."""
        ...


class Pieces:
    """What is left of some pieces of memory, in their order."""

    def __init__(self, pieces: Iterable[memoryview]) -> None:
        self._pieces = [piece for piece in pieces if len(piece)]
        self._first = 0
        self.num_bytes = sum(len(piece) for piece in self._pieces)

    def __bool__(self) -> bool:
        return self.num_bytes > 0

    def next(self) -> list[memoryview]:
        """The first of what is left, for a system call."""
        return self._pieces[self._first : self._first + _MOST_AT_A_TIME]

    def add(self, pieces: Iterable[memoryview]) -> None:
        added = [piece for piece in pieces if len(piece)]
        self._pieces, self._first = self._pieces[self._first :] + added, 0
        self.num_bytes += sum(len(piece) for piece in added)

    def pass_over(self, num_bytes: int) -> None:
        """So many bytes are done."""
        self._cut(num_bytes)

    def take(self, room: memoryview) -> memoryview:
        """Pass over as much as fits in room, and give it: where it lies if it is in one piece, else copied there."""
        parts = self._cut(len(room))
        if len(parts) == 1:
            return parts[0]
        end = 0
        for part in parts:
            start, end = end, end + len(part)
            room[start:end] = part
        return room[:end]

    def fill(self, content: memoryview) -> None:
        """Write content to what comes next, and pass over it."""
        end = 0
        for part in self._cut(len(content)):
            start, end = end, end + len(part)
            part[:] = content[start:end]

    def _cut(self, num_bytes: int) -> list[memoryview]:
        """Pass over what comes next, as much as there is of num_bytes, and give it."""
        parts: list[memoryview] = []
        num_bytes = min(num_bytes, self.num_bytes)
        self.num_bytes -= num_bytes
        while num_bytes:
            piece = self._pieces[self._first]
            if len(piece) > num_bytes:
                self._pieces[self._first] = piece[num_bytes:]
                piece = piece[:num_bytes]
            else:
                self._first += 1
            parts.append(piece)
            num_bytes -= len(piece)
        return parts
