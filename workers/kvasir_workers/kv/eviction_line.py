"""Pages that may be evicted, in the order in which they go: of the prefix tree, and of the tiers below it."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from kvasir_protocol.ids import PageHash


class Evictable(Protocol):
    """name and priority must not change while it stands in line."""

    @property
    def name(self) -> PageHash: ...

    @property
    def priority(self) -> int: ...


T = TypeVar("T", bound=Evictable)


class EvictionLine(Generic[T]):
    """The lowest priority first, then those that stand in line longest."""

    def __init__(self) -> None:
        self._lines: dict[int, OrderedDict[PageHash, T]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        """In the order of eviction."""
        for priority in sorted(self._lines):
            yield from self._lines[priority].values()

    def append(self, page: T) -> None:
        self._lines.setdefault(page.priority, OrderedDict())[page.name] = page
        self._size += 1

    def remove(self, page: T) -> None:
        line = self._lines[page.priority]
        del line[page.name]
        if not line:
            del self._lines[page.priority]
        self._size -= 1

    def first(self) -> T:
        return next(iter(self._lines[min(self._lines)].values()))
