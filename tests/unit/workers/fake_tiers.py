"""Tiers below a fake runner's pages: their books are the real ones, their content is a token where a model has keys."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from kvasir_protocol.ids import PageHash
from kvasir_workers.kv.offload.costs import PriceTag
from kvasir_workers.kv.offload.disk_tier import DiskTier
from kvasir_workers.kv.offload.disk_worker import DiskJob, DoneJob
from kvasir_workers.kv.offload.host_tier import HostTier
from kvasir_workers.kv.offload.moves import Moves
from kvasir_workers.kv.offload.tier_log import TierLog
from kvasir_workers.kv.offload.tiers import KvTiers
from kvasir_workers.kv.prefix_tree import PageWatcher

JUNK = -1

Content = NDArray[np.int64]


class TickingClock:
    """A second later each time it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class FakeDisk:
    """A DiskWorker that works when it is told to. host: [slots, P]. is_broken: every job fails from now on."""

    def __init__(self, host: Content) -> None:
        self._host = host
        self.content: dict[int, tuple[PageHash, list[int]]] = {}
        self.jobs: deque[DiskJob] = deque()
        self.is_broken = False
        self.is_closed = False
        self._done: list[DoneJob] = []

    def submit(self, job: DiskJob) -> None:
        self.jobs.append(job)

    def work(self, num_jobs: int = 1000) -> None:
        for _ in range(min(num_jobs, len(self.jobs))):
            self._do(self.jobs.popleft())

    def _do(self, job: DiskJob) -> None:
        if self.is_broken:
            self._done.append(DoneJob(job, "failed", 0.0, "no space left"))
        elif job.kind == "write":
            assert job.host.is_ready, "a page is written to disk before it is in host memory"
            self.content[job.disk.slot] = (job.disk.name, self._host[job.host.slot].tolist())
            self._done.append(DoneJob(job, "done", 1e-9))
        else:
            name, tokens = self.content[job.disk.slot]
            is_spoilt = JUNK in tokens
            assert is_spoilt or name == job.disk.name, "another page's slot is read"
            self._host[job.host.slot] = tokens
            self._done.append(DoneJob(job, "corrupt" if is_spoilt else "done", 1e-9))

    def spoil(self) -> None:
        """All that is on disk now changes there."""
        self.content = {slot: (name, [JUNK] * len(tokens)) for slot, (name, tokens) in self.content.items()}

    def take_done(self) -> list[DoneJob]:
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        self.is_closed = True


class FakeTiers:
    """num_disk_slots 0: no disk. is_cheap: restoring is always sooner than computing, or never."""

    def __init__(
        self,
        num_host_slots: int,
        page_size: int,
        *,
        num_disk_slots: int = 0,
        is_cheap: bool = True,
        watcher: PageWatcher | None = None,
    ) -> None:
        self.page_size = page_size
        self.content: Content = np.full((num_host_slots, page_size), JUNK, dtype=np.int64)
        self.disk = FakeDisk(self.content)
        self.clock = TickingClock()
        log, prices = TierLog(watcher), PriceTag()
        host = HostTier(num_host_slots, log)
        prices.host_page.add(1e-9 if is_cheap else 1e9, 1)
        prices.disk_page.add(1e-9, 1)
        disk = DiskTier(num_disk_slots, self.disk, host, log, prices.disk_page) if num_disk_slots else None
        self.tiers = KvTiers(host, page_size, prices, log, disk, clock=self.clock)

    def move(self, moves: Moves, slots: Content) -> None:
        """What a runner does first. slots: all pages' tokens, one after the other."""
        pages = slots.reshape(-1, self.page_size)
        for save in moves.saves:
            self.content[save.slot] = pages[save.page]
        for restore in moves.restores:
            pages[restore.page] = self.content[restore.slot]
