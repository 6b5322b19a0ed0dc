"""Pages in host memory: what the device evicted last."""

from collections.abc import Sequence

from kvasir_protocol.ids import PageHash
from kvasir_protocol.kv_events import MEDIUM_CPU
from kvasir_workers.kv.offload.tier_log import TierLog
from kvasir_workers.kv.offload.tier_slots import StoredPage, TierSlots
from kvasir_workers.kv.prefix_tree import CachedPage


class HostTier:
    """Which slot of the buffer holds which page. only_here: pages that no tier below has, in the order they came."""

    def __init__(self, num_slots: int, log: TierLog) -> None:
        self.slots = TierSlots(num_slots)
        self.only_here: dict[PageHash, StoredPage] = {}
        self.arriving: set[PageHash] = set()
        self._log = log

    def take(self, identity: CachedPage) -> StoredPage | None:
        """A slot to be filled with a page that is not here, perhaps in place of another; None if all are in use."""
        stored, evicted = self.slots.take(identity)
        if evicted is not None:
            self._log.removed(evicted, MEDIUM_CPU)
            if self.only_here.pop(evicted.name, None) is not None:
                self._log.counts["host_dropped_pages"] += 1
        return stored

    def publish(self, stored: StoredPage, *, is_only_copy: bool) -> None:
        """The slot was filled."""
        self.slots.set_spare(stored, is_spare=not is_only_copy)
        self.slots.publish(stored)
        if stored.is_forgotten:
            return
        self._log.stored(stored, MEDIUM_CPU)
        if is_only_copy:
            self.only_here[stored.name] = stored

    def note_lost_below(self, name: PageHash) -> None:
        """The tier below has the page no more: if it is here, then only here."""
        stored = self.slots.find(name)
        if stored is not None and stored.is_ready:
            self.only_here[name] = stored
            self.slots.set_spare(stored, is_spare=False)

    def restorable(self, names: Sequence[PageHash]) -> list[StoredPage]:
        """Of the first of these pages those that are here for a step to read.

        A page whose save is on its way is: steps run in order. One that comes from below is not, yet.
        """
        pages: list[StoredPage] = []
        for name in names:
            stored = self.slots.find(name)
            if stored is None or name in self.arriving:
                break
            pages.append(stored)
        return pages

    def clear(self) -> None:
        for stored in self.slots.forget_all():
            self._log.removed(stored, MEDIUM_CPU)
        self.only_here.clear()

    def audit(self) -> None:
        """Raises AssertionError."""
        self.slots.audit()
        for name, stored in self.only_here.items():
            assert self.slots.find(name) is stored and stored.is_ready, f"page {name.hex()} is not here, but only here"
