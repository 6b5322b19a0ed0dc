"""What goes to disk and comes back, with a disk that works when it is told to."""

import pytest

from kvasir_protocol.kv_events import MEDIUM_STORAGE
from kvasir_workers.kv.offload.costs import TRIAL_EVERY, Prices
from kvasir_workers.kv.offload.disk_tier import MAX_WRITES, DiskTier, DiskWait
from kvasir_workers.kv.offload.tier_slots import StoredPage
from tests.unit.workers.fake_tiers import FakeTiers
from tests.unit.workers.kv.offload.pages import PAGE_SIZE, Recorder, evicted, name_of

CHEAP = Prices(token_s=1.0, host_page_s=0.1, disk_page_s=0.1)
NAMES = [name_of(number) for number in range(1, 9)]


class Cellar:
    """Host memory of some slots (half of which may hold what is nowhere else) and a disk."""

    def __init__(self, num_host_slots: int = 4, num_disk_slots: int = 8, recorder: Recorder | None = None) -> None:
        self.below = FakeTiers(num_host_slots, PAGE_SIZE, num_disk_slots=num_disk_slots, watcher=recorder)
        self.host, self.log, self.worker = self.below.tiers.host, self.below.tiers.log, self.below.disk

    @property
    def disk(self) -> DiskTier:
        assert self.below.tiers.disk is not None
        return self.below.tiers.disk

    def save(self, *numbers: int) -> None:
        """Pages come from the device, and the disk has all the time that it needs."""
        for number in numbers:
            stored = self.host.take(evicted(number))
            assert stored is not None
            self.below.content[stored.slot] = number
            self.host.publish(stored, is_only_copy=not self.disk.has(stored.name))
            self.settle()

    def settle(self, num_jobs: int = 1000) -> None:
        self.disk.demote()
        self.worker.work(num_jobs)
        self.disk.collect()
        self.host.audit()
        self.disk.audit()

    def fetch(self, *numbers: int, prices: Prices = CHEAP, now: float = 0.0) -> DiskWait | None:
        wait = self.disk.fetch([name_of(number) for number in numbers], prices, PAGE_SIZE, now)
        self.host.audit()
        return wait

    def in_host(self, number: int) -> StoredPage | None:
        return self.host.slots.find(name_of(number))


def test_oldest_pages_are_written_before_host_memory_is_full() -> None:
    cellar = Cellar()
    cellar.save(1, 2)
    assert cellar.worker.content == {}
    cellar.save(3)
    assert [cellar.disk.has(name) for name in NAMES[:4]] == [True, False, False, False]


def test_page_comes_back_as_it_went() -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5, 6)
    assert cellar.in_host(1) is None
    wait = cellar.fetch(1, 2)
    assert wait is not None
    assert wait.is_on(now=0.0)
    cellar.settle()
    assert not wait.is_on(now=0.0)
    pages = cellar.host.restorable([name_of(1), name_of(2)])
    assert [cellar.below.content[page.slot].tolist() for page in pages] == [[1] * PAGE_SIZE, [2] * PAGE_SIZE]
    assert cellar.log.counts["disk_restored_pages"] == 2


def test_page_that_came_back_is_not_written_again() -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5)
    cellar.fetch(1)
    cellar.settle()
    assert cellar.in_host(1) is not None
    assert name_of(1) not in cellar.host.only_here


@pytest.mark.parametrize(
    "prices",
    [
        Prices(token_s=1.0, host_page_s=0.1, disk_page_s=2.0),
        Prices(token_s=1.0, host_page_s=0.1, disk_page_s=None),
        Prices(token_s=None, host_page_s=0.1, disk_page_s=0.1),
    ],
)
def test_page_that_is_sooner_computed_is_not_read(prices: Prices) -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5)
    assert cellar.fetch(1, prices=prices) is None


def test_one_page_is_tried_after_many_were_refused() -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5, 6)
    dear = Prices(token_s=1.0, host_page_s=0.1, disk_page_s=100.0)
    waits = [cellar.fetch(1, 2, prices=dear) for _ in range(TRIAL_EVERY)]
    assert [len(wait.pages) if wait is not None else 0 for wait in waits] == [0] * (TRIAL_EVERY - 1) + [1]


def test_pages_are_read_up_to_the_first_that_is_nowhere() -> None:
    cellar = Cellar(num_host_slots=8, num_disk_slots=20)
    cellar.save(1, 2, 3, 4, 5, 6, 7, 8)
    cellar.save(11, 12, 13, 14, 15, 16)
    wait = cellar.fetch(1, 2, 99, 3)
    assert wait is not None
    assert [page.name for page in wait.pages] == [name_of(1), name_of(2)]


def test_reads_take_at_most_half_of_host_memory() -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5, 6, 7, 8)
    wait = cellar.fetch(1, 2, 3, 4)
    assert wait is not None
    assert len(wait.pages) == 2
    assert cellar.fetch(3, 4) is None


def test_what_is_read_takes_no_place_of_a_page_before_it() -> None:
    cellar = Cellar()
    cellar.save(2, 3, 1, 4, 5, 6)
    assert cellar.in_host(1) is not None
    assert cellar.in_host(2) is None
    cellar.fetch(1, 2)
    cellar.settle()
    assert cellar.in_host(1) is not None
    assert cellar.in_host(2) is not None


def test_second_sequence_waits_for_the_same_read() -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5)
    first, second = cellar.fetch(1), cellar.fetch(1)
    assert first is not None
    assert second is not None
    assert (first.pages, len(cellar.worker.jobs)) == (second.pages, 1)


def test_wait_ends_when_computing_would_have_been_done() -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5)
    wait = cellar.fetch(1, now=100.0)
    assert wait is not None
    assert wait.is_on(now=100.0 + PAGE_SIZE - 0.1)
    assert not wait.is_on(now=100.0 + PAGE_SIZE)
    assert not wait.is_on(now=100.0)


def test_spoilt_page_is_dropped_and_counted() -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5)
    cellar.worker.spoil()
    wait = cellar.fetch(1)
    cellar.settle()
    assert wait is not None
    assert not wait.is_on(now=0.0)
    assert (cellar.in_host(1), cellar.disk.has(name_of(1)), cellar.log.counts["disk_corrupt_pages"]) == (None, False, 1)


def test_disk_that_fails_is_never_used_again() -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5)
    cellar.worker.is_broken = True
    cellar.save(6, 7, 8)
    assert (len(cellar.disk.slots), len(cellar.worker.jobs), cellar.fetch(1)) == (0, 0, None)


def test_read_that_fails_ends_the_wait() -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5)
    wait = cellar.fetch(1)
    cellar.worker.is_broken = True
    cellar.settle()
    assert wait is not None
    assert not wait.is_on(now=0.0)


def test_full_disk_gives_up_its_oldest_page() -> None:
    cellar = Cellar(num_disk_slots=2)
    cellar.save(*range(1, 8))
    assert [cellar.disk.has(name) for name in NAMES[:6]] == [False, False, False, True, True, False]
    assert cellar.log.counts["disk_dropped_pages"] == 3


def test_queue_of_writes_is_bounded() -> None:
    cellar = Cellar(num_host_slots=600, num_disk_slots=600)
    for number in range(600):
        stored = cellar.host.take(evicted(number))
        assert stored is not None
        cellar.host.publish(stored, is_only_copy=True)
    for _ in range(3):
        cellar.settle(num_jobs=0)
    assert len(cellar.worker.jobs) == MAX_WRITES


def test_page_that_is_being_written_keeps_its_place() -> None:
    cellar = Cellar(num_host_slots=1)
    stored = cellar.host.take(evicted(1))
    assert stored is not None
    cellar.host.publish(stored, is_only_copy=True)
    cellar.settle(num_jobs=0)
    assert cellar.host.take(evicted(2)) is None
    cellar.settle()
    assert cellar.host.take(evicted(2)) is not None


def test_what_was_cleared_while_it_was_read_is_not_there_afterwards() -> None:
    cellar = Cellar()
    cellar.save(1, 2, 3, 4, 5)
    cellar.fetch(1)
    cellar.below.tiers.clear()
    cellar.settle()
    assert (len(cellar.host.slots), len(cellar.disk.slots), cellar.host.arriving) == (0, 0, set())


def test_watcher_hears_of_the_disk_by_its_name() -> None:
    recorder = Recorder()
    cellar = Cellar(num_host_slots=1, num_disk_slots=1, recorder=recorder)
    cellar.save(1, 2)
    on_disk = [item for item in recorder.heard if item.endswith(MEDIUM_STORAGE)]
    assert on_disk == ["+1 STORAGE", "-1 STORAGE", "+2 STORAGE"]


def test_closing_ends_the_worker() -> None:
    cellar = Cellar()
    cellar.disk.close()
    assert cellar.worker.is_closed
