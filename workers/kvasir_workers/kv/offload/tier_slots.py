"""The slots of one tier: which are free, which page lies in which, and which may be given to another.

            take                    publish
    FREE ----------> being filled ----------> ready --- nobody reads it: in the eviction line
      ^                   |                     |
      +------ drop -------+------ evicted ------+

A slot that is being filled or read is never given to another page, so that whoever fills or reads it may take its time.
A page that is forgotten meanwhile keeps its slot until then.
"""

from dataclasses import dataclass
from itertools import chain

from kvasir_protocol.ids import PageHash
from kvasir_workers.kv.eviction_line import EvictionLine
from kvasir_workers.kv.prefix_tree import CachedPage


@dataclass(slots=True, eq=False)
class StoredPage:
    """One page in a tier. identity: what it was in the prefix tree. num_readers: restores that read the slot.

    is_being_copied: to the tier below, which makes it no fresher: it keeps its place in line. is_spare: the
    tier below has it, so that it goes before those that are nowhere else.
    """

    identity: CachedPage
    slot: int
    priority: int
    is_ready: bool = False
    is_forgotten: bool = False
    is_being_copied: bool = False
    is_spare: bool = False
    num_readers: int = 0

    @property
    def name(self) -> PageHash:
        return self.identity.name


class TierSlots:
    """num_slots places for pages, found by name. It holds no content."""

    def __init__(self, num_slots: int) -> None:
        assert num_slots > 0, f"a tier needs slots, got {num_slots}"
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._by_name: dict[PageHash, StoredPage] = {}
        self._forgotten: set[StoredPage] = set()
        self._spare_line: EvictionLine[StoredPage] = EvictionLine()
        self._line: EvictionLine[StoredPage] = EvictionLine()

    def __len__(self) -> int:
        return len(self._by_name)

    def pages(self) -> list[StoredPage]:
        """All that are found."""
        return list(self._by_name.values())

    def find(self, name: PageHash) -> StoredPage | None:
        return self._by_name.get(name)

    def take(self, identity: CachedPage) -> tuple[StoredPage | None, StoredPage | None]:
        """A slot to be filled with a page that is not here, and the page that was evicted for it, if one was.

        No slot if all are being filled or read.
        """
        assert identity.name not in self._by_name, f"page {identity.name.hex()} is here already"
        evicted = None
        if not self._free:
            in_turn = chain(self._spare_line, self._line)
            evicted = next((stored for stored in in_turn if not stored.is_being_copied), None)
            if evicted is None:
                return None, None
            self.forget(evicted)
        stored = self._by_name[identity.name] = StoredPage(identity, self._free.pop(), identity.priority)
        return stored, evicted

    def publish(self, stored: StoredPage) -> None:
        """The slot has its content."""
        assert not stored.is_ready, f"slot {stored.slot} is filled twice"
        stored.is_ready = True
        self._settle(stored)

    def drop(self, stored: StoredPage) -> None:
        """The content did not come: the slot is free again."""
        assert not stored.is_ready and not stored.num_readers, f"slot {stored.slot} is dropped while in use"
        if not stored.is_forgotten:
            del self._by_name[stored.name]
            stored.is_forgotten = True
        self._forgotten.discard(stored)
        self._free.append(stored.slot)

    def hold(self, stored: StoredPage) -> None:
        """One more transfer reads the slot, or will as soon as it is filled."""
        if self._is_idle(stored):
            self._line_of(stored).remove(stored)
        stored.num_readers += 1

    def release(self, stored: StoredPage) -> None:
        assert stored.num_readers > 0, f"slot {stored.slot} is released more often than held"
        stored.num_readers -= 1
        self._settle(stored)

    def begin_copy(self, stored: StoredPage) -> None:
        """The tier below reads the slot."""
        assert stored.is_ready and not stored.is_being_copied, f"slot {stored.slot} is copied before it is filled"
        stored.is_being_copied = True

    def end_copy(self, stored: StoredPage) -> None:
        stored.is_being_copied = False
        if stored.is_forgotten:
            self._free_if_quiet(stored)

    def touch(self, stored: StoredPage, priority: int = 0) -> None:
        """Somebody wants the page: it goes to the end of the line, with this priority if it is higher."""
        self._requeue(stored, max(stored.priority, priority), is_spare=stored.is_spare)

    def set_spare(self, stored: StoredPage, *, is_spare: bool) -> None:
        """The tier below has the page now, or has it no more."""
        if not stored.is_forgotten:
            self._requeue(stored, stored.priority, is_spare=is_spare)

    def _requeue(self, stored: StoredPage, priority: int, *, is_spare: bool) -> None:
        is_idle = self._is_idle(stored)
        if is_idle:
            self._line_of(stored).remove(stored)
        stored.priority, stored.is_spare = priority, is_spare
        if is_idle:
            self._line_of(stored).append(stored)

    def _line_of(self, stored: StoredPage) -> EvictionLine[StoredPage]:
        return self._spare_line if stored.is_spare else self._line

    def forget(self, stored: StoredPage) -> None:
        """Nobody finds the page any more."""
        if self._is_idle(stored):
            self._line_of(stored).remove(stored)
        del self._by_name[stored.name]
        stored.is_forgotten = True
        self._forgotten.add(stored)
        self._free_if_quiet(stored)

    def forget_all(self) -> list[StoredPage]:
        """Forget every page; those that were found until now."""
        pages = self.pages()
        for stored in pages:
            self.forget(stored)
        return pages

    def _is_idle(self, stored: StoredPage) -> bool:
        return stored.is_ready and not stored.num_readers and not stored.is_forgotten

    def _settle(self, stored: StoredPage) -> None:
        if stored.is_forgotten:
            self._free_if_quiet(stored)
        elif self._is_idle(stored):
            self._line_of(stored).append(stored)

    def _free_if_quiet(self, stored: StoredPage) -> None:
        if self._is_quiet(stored):
            self._forgotten.remove(stored)
            self._free.append(stored.slot)

    def _is_quiet(self, stored: StoredPage) -> bool:
        return stored.is_ready and not stored.num_readers and not stored.is_being_copied

    def audit(self) -> None:
        """Check that each slot is free or held by one page. Raises AssertionError."""
        pages = [*self._by_name.values(), *self._forgotten]
        slots = sorted([*self._free, *(stored.slot for stored in pages)])
        assert slots == list(range(self.num_slots)), f"slots are lost or held twice: {slots}"
        assert all(stored.name == name for name, stored in self._by_name.items()), "a page is found by another's name"
        idle = {stored for stored in self._by_name.values() if self._is_idle(stored)}
        lines = [*self._spare_line, *self._line]
        assert set(lines) == idle and len(lines) == len(idle), "the eviction lines are off"
        assert all(stored.is_spare for stored in self._spare_line), "a page in the line of spare ones is not spare"
        for stored in self._forgotten:
            assert stored.is_forgotten and not self._is_quiet(stored), f"slot {stored.slot} leaks"
