"""The tiers below the device's pages, as the prefix cache sees them.

device --save--> host memory --write--> disk      saves and restores are parts of a step, executed in order;
       <-restore-            <--read---           a thread writes and reads, only what no step touches
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep

from kvasir_protocol.ids import PageHash, PageIndex
from kvasir_workers.kv.offload.costs import PriceTag, Trials, is_host_cheaper
from kvasir_workers.kv.offload.disk_tier import DiskTier, DiskWait
from kvasir_workers.kv.offload.host_tier import HostTier
from kvasir_workers.kv.offload.moves import HostSlot, Moves, PageRestore, PageSave
from kvasir_workers.kv.offload.tier_log import TierLog
from kvasir_workers.kv.offload.tier_slots import StoredPage
from kvasir_workers.kv.prefix_tree import CachedPage


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step on its way: the slots that it fills and reads, and what it was measured by."""

    moves: Moves
    saved: list[StoredPage]
    restored: list[StoredPage]
    num_tokens: int
    is_prefill: bool
    started_at: float


@dataclass(slots=True)
class KvTiers:
    """Host memory, and disk if there is one. One thread, the engine's, owns it.

    take_restore_times: how many pages were restored in how many seconds, since the last time. clock: seconds.
    """

    host: HostTier
    page_size: int
    prices: PriceTag
    log: TierLog
    disk: DiskTier | None = None
    take_restore_times: Callable[[], list[tuple[int, float]]] = list
    clock: Callable[[], float] = monotonic
    _saves: list[tuple[PageIndex, StoredPage]] = field(default_factory=list)
    _flights: deque[_Flight] = field(default_factory=deque)
    _settled_at: float = 0.0
    _trials: Trials = field(default_factory=Trials)

    # What the cache gives and takes

    def save(self, evicted: CachedPage) -> None:
        """The device needs the place of a READY page: the next step saves it, if it is full and there is room."""
        if not evicted.is_full:
            return
        known = self.host.slots.find(evicted.name)
        if known is not None:
            self.host.slots.touch(known, evicted.priority)
            return
        stored = self.host.take(evicted)
        if stored is not None:
            self._saves.append((evicted.page, stored))
        else:
            self.log.counts["host_dropped_pages"] += 1

    def cancel_saves(self, pages: Collection[PageIndex]) -> None:
        """Somebody may write into these pages before the next step runs."""
        for page, stored in self._saves:
            if page in pages:
                self.host.slots.drop(stored)
        self._saves = [(page, stored) for page, stored in self._saves if page not in pages]

    def hold(self, names: Sequence[PageHash]) -> list[StoredPage]:
        """Of the first of these pages those that are to be restored rather than computed; `release` or issue them."""
        pages = self.host.restorable(names)
        if pages and not is_host_cheaper(self.prices.prices(), self.page_size):
            pages = pages[:1] if self._trials.is_due() else []
        for stored in pages:
            self.host.slots.hold(stored)
        return pages

    def release(self, pages: Sequence[StoredPage]) -> None:
        # The last first, so that it is also evicted before those that it follows.
        for stored in reversed(pages):
            self.host.slots.release(stored)

    def fetch(self, names: Sequence[PageHash]) -> DiskWait | None:
        """Begin to read from disk what is worth it of the first of these pages; None if nothing is to be waited for."""
        if self.disk is None:
            return None
        self.disk.collect()
        return self.disk.fetch(names, self.prices.prices(), self.page_size, self.clock())

    def is_waiting(self, wait: DiskWait) -> bool:
        """Whether pages that were fetched are still to be waited for."""
        if wait.is_over:
            return False
        if self.disk is not None:
            self.disk.collect()
        if not wait.is_on(self.clock()):
            return False
        sleep(0)  # a loop that only asks again would keep the disk's thread from running
        return True

    def clear(self) -> None:
        """Forget everything."""
        if self.disk is not None:
            self.disk.clear()
        self.host.clear()

    # Steps

    def issue(self, restores: Sequence[tuple[StoredPage, PageIndex]], num_new_tokens: Sequence[int]) -> Moves:
        """What the step that is planned now has to move; to be settled, in order, when it has run.

        restores: held pages and where they go. num_new_tokens: of each sequence in the step.
        """
        moves = Moves(
            saves=tuple(PageSave(page, HostSlot(stored.slot)) for page, stored in self._saves),
            restores=tuple(PageRestore(HostSlot(stored.slot), page) for stored, page in restores),
        )
        num_tokens = sum(num_new_tokens)
        num_prefill = sum(num_new for num_new in num_new_tokens if num_new > 1)
        saved = [stored for _, stored in self._saves]
        restored = [stored for stored, _ in restores]
        flight = _Flight(moves, saved, restored, num_tokens, 2 * num_prefill > num_tokens, self.clock())
        self._flights.append(flight)
        self._saves = []
        return moves

    def settle(self, moves: Moves) -> None:
        """The step has run."""
        flight = self._flights.popleft()
        assert flight.moves is moves, "steps are settled out of order"
        self._measure(flight)
        for stored in flight.saved:
            self.host.publish(stored, is_only_copy=self.disk is None or not self.disk.has(stored.name))
        self.release(flight.restored)
        self.log.counts["host_saved_pages"] += len(flight.saved)
        self.log.counts["host_restored_pages"] += len(flight.restored)
        if self.disk is not None:
            self.disk.collect()
            self.disk.demote()

    def _measure(self, flight: _Flight) -> None:
        """Steps follow each other on the device: one begins when it was planned or when the one before ended."""
        now = self.clock()
        seconds = now - max(flight.started_at, self._settled_at)
        self._settled_at = now
        if flight.is_prefill and not flight.restored:
            self.prices.token.add(seconds, flight.num_tokens)
        for num_pages, restore_s in self.take_restore_times():
            self.prices.host_page.add(restore_s, num_pages)

    def close(self) -> None:
        """End the disk's thread; the file goes with it."""
        if self.disk is not None:
            self.disk.close()

    def audit(self) -> None:
        """Check the books of all tiers. Raises AssertionError."""
        self.host.audit()
        for _, stored in self._saves:
            assert not stored.is_ready, f"slot {stored.slot} is to be filled twice"
        if self.disk is not None:
            self.disk.audit()
