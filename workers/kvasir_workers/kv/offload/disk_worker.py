"""A thread that reads and writes the disk tier's file, so that no engine step waits for a disk."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Literal, Protocol

from kvasir_workers.kv.offload.page_file import CorruptPage, PageFile
from kvasir_workers.kv.offload.tier_slots import StoredPage

FAREWELL_S = 5.0
"""For the last job to end; a disk that hangs must not keep the process from ending."""


@dataclass(frozen=True, slots=True)
class DiskJob:
    """Bring a page from host memory to disk, or back. Both slots are the job's until it is done."""

    kind: Literal["write", "read"]
    host: StoredPage
    disk: StoredPage


@dataclass(frozen=True, slots=True)
class DoneJob:
    """outcome: "corrupt" is a page that is not what was written, "failed" the disk's fault. seconds: what it took."""

    job: DiskJob
    outcome: Literal["done", "corrupt", "failed"]
    seconds: float
    reason: str = ""


class DiskWorker(Protocol):
    """Does jobs in the background."""

    def submit(self, job: DiskJob) -> None:
        """Never waits. Reads go before writes."""
        ...

    def take_done(self) -> list[DoneJob]:
        """What is done since the last time."""
        ...

    def close(self) -> None:
        """End after the job that runs; the others are never done."""
        ...


def run_job(job: DiskJob, file: PageFile, content: memoryview, clock: Callable[[], float]) -> DoneJob:
    """Do it now. content: the host slot's bytes."""
    started_at = clock()
    try:
        if job.kind == "write":
            file.write(job.disk.slot, job.disk.name, content)
        else:
            file.read(job.disk.slot, job.disk.name, content)
    except CorruptPage as error:
        return DoneJob(job, "corrupt", clock() - started_at, str(error))
    except Exception as error:  # whatever it is: a job that never ends would hold its slots for ever
        return DoneJob(job, "failed", clock() - started_at, f"{type(error).__name__}: {error}")
    return DoneJob(job, "done", clock() - started_at)


class DiskThread:
    """The DiskWorker that the engine uses. host_bytes: a host slot's memory."""

    def __init__(self, file: PageFile, host_bytes: Callable[[int], memoryview]) -> None:
        self._file = file
        self._host_bytes = host_bytes
        self._reads: deque[DiskJob] = deque()
        self._writes: deque[DiskJob] = deque()
        self._done: deque[DoneJob] = deque()
        self._bell = Condition()
        self._is_closing = False
        self._thread = Thread(target=self._run, name="kv-disk", daemon=True)
        self._thread.start()

    def submit(self, job: DiskJob) -> None:
        with self._bell:
            (self._reads if job.kind == "read" else self._writes).append(job)
            self._bell.notify()

    def take_done(self) -> list[DoneJob]:
        return [self._done.popleft() for _ in range(len(self._done))]

    def close(self) -> None:
        if self._is_closing:
            return
        with self._bell:
            self._is_closing = True
            self._bell.notify()
        self._thread.join(FAREWELL_S)
        if not self._thread.is_alive():
            self._file.close()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._done.append(run_job(job, self._file, self._host_bytes(job.host.slot), time.perf_counter))

    def _next(self) -> DiskJob | None:
        with self._bell:
            self._bell.wait_for(lambda: self._is_closing or self._reads or self._writes)
            if self._is_closing:
                return None
            return self._reads.popleft() if self._reads else self._writes.popleft()
