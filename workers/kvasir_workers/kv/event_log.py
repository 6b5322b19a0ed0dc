"""What the prefix tree did since somebody last asked: written by the engine, which never waits for the reader."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock

from kvasir_protocol.ids import PageHash
from kvasir_protocol.kv_events import MEDIUM_GPU, AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, Medium
from kvasir_workers.kv.prefix_tree import CachedPage

CAPACITY = 50_000
"""Changes that may wait for the reader: seconds of the busiest engine, and about ten megabytes."""


@dataclass(frozen=True, slots=True)
class Change:
    """A page that came to a medium or went from it; None: all went, from everywhere."""

    page: CachedPage | None
    is_stored: bool
    medium: Medium = MEDIUM_GPU


@dataclass(frozen=True, slots=True)
class Taken:
    """All changes since the last time; is_lossy: more happened after them. pages: what made all that there are now
    come, if asked."""

    changes: list[Change]
    is_lossy: bool
    pages: list[Change]


class KvEventLog:
    """A PageWatcher. bell is rung at the first change after each `take`."""

    def __init__(self, bell: Callable[[], None] = lambda: None, capacity: int = CAPACITY) -> None:
        self.bell = bell
        self._capacity = capacity
        self._lock = Lock()
        self._changes: list[Change] = []
        self._is_lossy = False
        # In a tree children come after their parents, since they are stored later.
        self._pages: dict[tuple[PageHash, Medium], Change] = {}

    def page_stored(self, page: CachedPage, medium: Medium) -> None:
        change = Change(page, is_stored=True, medium=medium)
        with self._lock:
            self._pages[page.name, medium] = change
            is_first = self._append(change)
        if is_first:
            self.bell()

    def page_removed(self, page: CachedPage, medium: Medium) -> None:
        with self._lock:
            del self._pages[page.name, medium]
            is_first = self._append(Change(page, is_stored=False, medium=medium))
        if is_first:
            self.bell()

    def all_removed(self) -> None:
        with self._lock:
            self._pages.clear()
            is_first = self._append(Change(None, is_stored=False))
        if is_first:
            self.bell()

    def _append(self, change: Change) -> bool:
        if len(self._changes) >= self._capacity:
            self._is_lossy = True
            return False
        self._changes.append(change)
        return len(self._changes) == 1

    def take(self, *, with_pages: bool = False) -> Taken:
        """with_pages: a copy of the whole list, a millisecond for 100,000 pages."""
        with self._lock:
            changes, self._changes = self._changes, []
            is_lossy, self._is_lossy = self._is_lossy, False
            pages = list(self._pages.values()) if with_pages else []
        return Taken(changes, is_lossy, pages)


def events_of(changes: Iterable[Change]) -> list[KvEvent]:
    """Changes as events, a chain of pages in one."""
    events: list[KvEvent] = []
    run: list[CachedPage] = []
    last = Change(None, is_stored=True)
    for change in changes:
        follows = not change.is_stored or (run and change.page is not None and change.page.parent == run[-1].name)
        is_alike = (change.is_stored, change.medium) == (last.is_stored, last.medium)
        if run and (change.page is None or not is_alike or not follows):
            events.append(_event_of(run, last))
            run = []
        if change.page is None:
            events.append(AllBlocksCleared())
        else:
            run.append(change.page)
            last = change
    if run:
        events.append(_event_of(run, last))
    return events


def _event_of(run: list[CachedPage], last: Change) -> KvEvent:
    names = tuple(page.name for page in run)
    if not last.is_stored:
        return BlockRemoved(block_hashes=names, medium=last.medium)
    first = run[0]
    return BlockStored(
        block_hashes=names,
        parent_block_hash=first.parent if first.salt is None else None,
        token_ids=tuple(token_id for page in run for token_id in page.token_ids),
        block_size=len(first.token_ids),
        medium=last.medium,
        extra_keys=((first.salt,), *(None for _ in run[1:])) if first.salt else None,
    )
