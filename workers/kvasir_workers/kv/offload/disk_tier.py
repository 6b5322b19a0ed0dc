"""Pages on disk: written while host memory still has them, read back into host memory when somebody wants them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from kvasir_protocol.ids import PageHash
from kvasir_protocol.kv_events import MEDIUM_STORAGE
from kvasir_workers.kv.offload.costs import Prices, Rate, Trials, compute_s, is_disk_cheaper
from kvasir_workers.kv.offload.disk_worker import DiskJob, DiskWorker, DoneJob
from kvasir_workers.kv.offload.host_tier import HostTier
from kvasir_workers.kv.offload.tier_log import TierLog
from kvasir_workers.kv.offload.tier_slots import StoredPage, TierSlots

_log = logging.getLogger(__name__)

MAX_WRITES = 256
"""So many pages may wait to be written. One that finds no place stays in host memory, and is lost if it goes there."""

ONLY_IN_HOST_SHARE = 0.5
"""So much of host memory may hold pages that are nowhere else: what is evicted next has been written before, even if
the next step needs half of it at once."""


@dataclass(slots=True)
class DiskWait:
    """A sequence waits for its next pages, which are being read, at most until a time by the engine's clock.

    That is as long as computing them would take: whatever the disk does, the wait at most doubles the time.
    """

    pages: list[StoredPage]
    until: float
    is_over: bool = False

    def is_on(self, now: float) -> bool:
        """Whether there is still something to wait for."""
        is_coming = any(not page.is_ready and not page.is_forgotten for page in self.pages)
        self.is_over = self.is_over or not is_coming or now >= self.until
        return not self.is_over


class DiskTier:
    """Which slot of the file holds which page. read_rate gathers how long a page takes from disk to host memory."""

    def __init__(self, num_slots: int, worker: DiskWorker, host: HostTier, log: TierLog, read_rate: Rate) -> None:
        self.slots = TierSlots(num_slots)
        self._worker = worker
        self._host = host
        self._log = log
        self._read_rate = read_rate
        self._num_writing = 0
        self._has_failed = False
        self._trials = Trials()

    def has(self, name: PageHash) -> bool:
        """Whether the page is there, or on its way there."""
        return self.slots.find(name) is not None

    def demote(self) -> None:
        """Write the oldest of the pages that are only in host memory, as long as there are too many of them."""
        limit = int(ONLY_IN_HOST_SHARE * self._host.slots.num_slots)
        while len(self._host.only_here) > limit and self._num_writing < MAX_WRITES and not self._has_failed:
            stored = next(iter(self._host.only_here.values()))
            target, evicted = self.slots.take(stored.identity)
            if evicted is not None:
                self._note_gone(evicted)
                self._log.counts["disk_dropped_pages"] += 1
            if target is None:
                return
            del self._host.only_here[stored.name]
            self._host.slots.begin_copy(stored)
            self._num_writing += 1
            self._worker.submit(DiskJob("write", stored, target))

    def fetch(self, names: Sequence[PageHash], prices: Prices, page_size: int, now: float) -> DiskWait | None:
        """Begin to read what is on disk of the first of these pages, if that is cheaper than to compute it."""
        wanted: list[StoredPage] = []
        coming: list[StoredPage] = []
        for name in names:
            here, there = self._host.slots.find(name), self.slots.find(name)
            if here is not None:
                self._host.slots.touch(here)  # what is read must not take the place of what comes before it
                coming += [here] if name in self._host.arriving else []
            elif there is not None and there.is_ready:
                wanted.append(there)
            else:
                break
        num_queued = len(self._host.arriving)
        wanted = wanted[: max(0, self._host.slots.num_slots // 2 - num_queued)]
        if wanted and not is_disk_cheaper(prices, len(wanted), num_queued, page_size):
            wanted = wanted[:1] if self._trials.is_due() else []
        coming += self._read(wanted)
        return DiskWait(coming, now + compute_s(prices, len(coming), page_size)) if coming else None

    def _read(self, wanted: Sequence[StoredPage]) -> list[StoredPage]:
        targets: list[StoredPage] = []
        for stored in wanted:
            target = self._host.take(stored.identity)
            if target is None:
                break
            self._host.arriving.add(stored.name)
            self.slots.hold(stored)
            self._worker.submit(DiskJob("read", target, stored))
            targets.append(target)
        return targets

    def collect(self) -> None:
        """Take note of what the disk has done."""
        for done in self._worker.take_done():
            if done.job.kind == "write":
                self._note_written(done)
            else:
                self._note_read(done)
            if done.outcome == "failed":
                self._fail(done.reason)

    def _note_written(self, done: DoneJob) -> None:
        host, disk = done.job.host, done.job.disk
        self._num_writing -= 1
        if done.outcome != "done":
            self.slots.drop(disk)
            self._host.note_lost_below(host.name)
        else:
            self.slots.publish(disk)
            self._log.counts["disk_saved_pages"] += 1
            self._host.slots.set_spare(host, is_spare=not disk.is_forgotten)
            if not disk.is_forgotten:
                self._log.stored(disk, MEDIUM_STORAGE)
        self._host.slots.end_copy(host)

    def _note_read(self, done: DoneJob) -> None:
        host, disk = done.job.host, done.job.disk
        self._host.arriving.discard(host.name)
        self.slots.release(disk)
        if done.outcome == "done":
            self._host.publish(host, is_only_copy=disk.is_forgotten)
            self._log.counts["disk_restored_pages"] += 1
            self._read_rate.add(done.seconds, 1)
            return
        self._host.slots.drop(host)
        if not disk.is_forgotten:
            self.slots.forget(disk)
            self._note_gone(disk)
        if done.outcome == "corrupt":
            if not self._log.counts["disk_corrupt_pages"]:
                _log.warning("a page came back from disk spoilt (%s); such pages are computed again", done.reason)
            self._log.counts["disk_corrupt_pages"] += 1

    def _note_gone(self, page: StoredPage) -> None:
        self._log.removed(page, MEDIUM_STORAGE)
        self._host.note_lost_below(page.name)

    def _fail(self, reason: str) -> None:
        """From now on there is no disk tier; what is on its way still ends."""
        if not self._has_failed:
            self._has_failed = True
            _log.error("the disk tier of the KV cache is off from now on: %s", reason)
            self.clear()

    def clear(self) -> None:
        for stored in self.slots.forget_all():
            self._note_gone(stored)

    def close(self) -> None:
        self._worker.close()

    def audit(self) -> None:
        """Raises AssertionError."""
        self.slots.audit()
        for name in self._host.only_here:
            assert not self.has(name), f"page {name.hex()} is on disk, and only in host memory"
