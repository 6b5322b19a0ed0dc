"""A real thread and a real file. Nothing here waits for a time: a closed worker has done its last job."""

import os
from pathlib import Path
from threading import Event

import pytest

from kvasir_workers.kv.offload.disk_worker import DiskJob, DiskThread, DoneJob, run_job
from kvasir_workers.kv.offload.page_file import PageFile
from kvasir_workers.kv.offload.tier_slots import StoredPage
from tests.unit.workers.fake_tiers import TickingClock
from tests.unit.workers.kv.offload.pages import evicted

PAGE_BYTES = 64


def stored(number: int, slot: int) -> StoredPage:
    return StoredPage(evicted(number), slot, priority=0)


def job(kind: str, number: int = 1, host_slot: int = 0) -> DiskJob:
    assert kind in ("write", "read")
    return DiskJob(kind, stored(number, host_slot), stored(number, number))  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> PageFile:
    return PageFile.create(tmp_path, PAGE_BYTES)


def do(item: DiskJob, file: PageFile, content: bytearray) -> DoneJob:
    return run_job(item, file, memoryview(content), TickingClock())


def test_page_goes_to_disk_and_comes_back(file: PageFile) -> None:
    content = bytearray(b"x" * PAGE_BYTES)
    back = bytearray(PAGE_BYTES)
    assert do(job("write"), file, content).outcome == "done"
    done = do(job("read"), file, back)
    assert (done.outcome, done.seconds, back) == ("done", 1.0, content)
    file.close()


def test_page_that_was_never_written_is_corrupt(file: PageFile) -> None:
    assert do(job("read"), file, bytearray(PAGE_BYTES)).outcome == "corrupt"
    file.close()


def test_disk_that_fails_is_told_with_its_reason() -> None:
    file = PageFile(os.open("/dev/full", os.O_RDWR), PAGE_BYTES)
    done = do(job("write"), file, bytearray(PAGE_BYTES))
    assert (done.outcome, "No space left" in done.reason) == ("failed", True)
    file.close()


class Gate:
    """Host memory whose first slot is asked for, but not handed out before somebody opens it."""

    def __init__(self, last_slot: int) -> None:
        self.memory = [bytearray(PAGE_BYTES) for _ in range(last_slot + 1)]
        self.order: list[int] = []
        self.is_reached, self.is_open, self.has_ended = Event(), Event(), Event()

    def __call__(self, slot: int) -> memoryview:
        self.is_reached.set()
        self.is_open.wait(10)
        self.order.append(slot)
        if len(self.order) == len(self.memory):
            self.has_ended.set()
        return memoryview(self.memory[slot])


def test_reads_go_before_writes(file: PageFile) -> None:
    gate = Gate(last_slot=3)
    thread = DiskThread(file, gate)
    thread.submit(job("write", 1, host_slot=0))
    assert gate.is_reached.wait(10)
    thread.submit(job("write", 2, host_slot=1))
    thread.submit(job("write", 3, host_slot=2))
    thread.submit(job("read", 1, host_slot=3))
    gate.is_open.set()
    assert gate.has_ended.wait(10)
    thread.close()
    assert gate.order == [0, 3, 1, 2]
    assert [done.outcome for done in thread.take_done()] == ["done"] * 4
    assert thread.take_done() == []


def test_closing_twice_is_closing_once(file: PageFile) -> None:
    thread = DiskThread(file, lambda slot: memoryview(bytearray(PAGE_BYTES)))
    thread.close()
    thread.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fileno())
