"""What host memory has, and what only it has."""

import pytest

from kvasir_workers.kv.offload.host_tier import HostTier
from kvasir_workers.kv.offload.tier_log import TierLog
from kvasir_workers.kv.offload.tier_slots import StoredPage
from tests.unit.workers.kv.offload.pages import Recorder, evicted, name_of

NAMES = [name_of(number) for number in range(1, 5)]


def tier_of(num_slots: int, recorder: Recorder | None = None) -> tuple[HostTier, TierLog]:
    log = TierLog(recorder)
    return HostTier(num_slots, log), log


def saved(host: HostTier, number: int, *, is_only_copy: bool = True) -> StoredPage:
    stored = host.take(evicted(number))
    assert stored is not None
    host.publish(stored, is_only_copy=is_only_copy)
    host.audit()
    return stored


def test_pages_are_found_up_to_the_first_that_is_missing() -> None:
    host, _ = tier_of(4)
    pages = [saved(host, number) for number in (1, 2, 4)]
    assert host.restorable(NAMES) == pages[:2]


def test_page_whose_save_is_on_its_way_can_be_restored() -> None:
    host, _ = tier_of(1)
    stored = host.take(evicted(1))
    assert host.restorable([NAMES[0]]) == [stored]


def test_page_that_comes_from_below_can_not_be_restored_yet() -> None:
    host, _ = tier_of(1)
    host.take(evicted(1))
    host.arriving.add(NAMES[0])
    assert host.restorable([NAMES[0]]) == []


def test_page_that_goes_is_lost_only_if_it_was_nowhere_else() -> None:
    host, log = tier_of(1)
    saved(host, 1, is_only_copy=False)
    saved(host, 2)
    assert log.counts["host_dropped_pages"] == 0
    saved(host, 3)
    assert log.counts["host_dropped_pages"] == 1


def test_page_that_the_disk_lost_is_only_here() -> None:
    host, _ = tier_of(1)
    saved(host, 1, is_only_copy=False)
    for number in (1, 2):
        host.note_lost_below(name_of(number))
    assert list(host.only_here) == [name_of(1)]
    host.audit()


def test_watcher_hears_of_pages_that_came_and_went() -> None:
    recorder = Recorder()
    host, _ = tier_of(2, recorder)
    saved(host, 1)
    saved(host, 2)
    saved(host, 3)
    host.clear()
    assert recorder.heard == ["+1 CPU", "+2 CPU", "-1 CPU", "+3 CPU", "-2 CPU", "-3 CPU"]


def test_watcher_hears_nothing_of_a_page_that_was_forgotten_before_it_came() -> None:
    recorder = Recorder()
    host, _ = tier_of(1, recorder)
    stored = host.take(evicted(1))
    assert stored is not None
    host.clear()
    host.publish(stored, is_only_copy=True)
    assert (recorder.heard, host.only_here) == ([], {})
    host.audit()


def test_audit_finds_a_page_that_should_be_only_here() -> None:
    host, _ = tier_of(1)
    host.only_here[NAMES[0]] = StoredPage(evicted(1), 0, priority=0)
    with pytest.raises(AssertionError, match="is not here, but only here"):
        host.audit()
