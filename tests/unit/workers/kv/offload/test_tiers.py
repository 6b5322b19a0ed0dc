"""Saves and restores as parts of steps."""

import pytest

from kvasir_protocol.ids import PageIndex
from kvasir_workers.kv.offload.costs import TRIAL_EVERY
from kvasir_workers.kv.offload.moves import HostSlot, Moves, PageRestore, PageSave
from kvasir_workers.kv.offload.tiers import KvTiers
from tests.unit.workers.fake_tiers import FakeTiers
from tests.unit.workers.kv.offload.pages import PAGE_SIZE, evicted, name_of

PREFILL = [16]


def tiers_of(num_slots: int, *, is_cheap: bool = True) -> KvTiers:
    return FakeTiers(num_slots, PAGE_SIZE, is_cheap=is_cheap).tiers


def run(tiers: KvTiers, num_new: list[int]) -> Moves:
    """A step that restores nothing."""
    moves = tiers.issue([], num_new)
    tiers.settle(moves)
    tiers.audit()
    return moves


def saved(tiers: KvTiers, *numbers: int) -> None:
    for number in numbers:
        tiers.save(evicted(number))
    run(tiers, PREFILL)


def test_evicted_page_is_saved_by_the_next_step() -> None:
    tiers = tiers_of(2)
    tiers.save(evicted(1, page=7))
    assert run(tiers, PREFILL).saves == (PageSave(PageIndex(7), HostSlot(0)),)
    assert run(tiers, PREFILL).saves == ()
    assert tiers.log.counts["host_saved_pages"] == 1


def test_page_that_is_not_full_is_not_saved() -> None:
    tiers = tiers_of(2)
    tiers.save(evicted(1, is_full=False))
    assert run(tiers, PREFILL).saves == ()


def test_page_that_is_there_already_is_not_saved_again() -> None:
    tiers = tiers_of(2)
    saved(tiers, 1, 2)
    tiers.save(evicted(1))
    assert run(tiers, PREFILL).saves == ()
    saved(tiers, 3)
    assert [tiers.host.slots.find(name_of(number)) is not None for number in (1, 2)] == [True, False]


def test_page_that_finds_no_slot_is_dropped() -> None:
    tiers = tiers_of(1)
    tiers.save(evicted(1))
    tiers.save(evicted(2))
    assert len(run(tiers, PREFILL).saves) == 1
    assert tiers.log.counts["host_dropped_pages"] == 1


def test_save_of_a_page_that_others_may_write_into_is_cancelled() -> None:
    tiers = tiers_of(2)
    tiers.save(evicted(1, page=7))
    tiers.save(evicted(2, page=8))
    tiers.cancel_saves([PageIndex(7)])
    assert [save.page for save in run(tiers, PREFILL).saves] == [8]
    assert tiers.host.slots.find(name_of(1)) is None


def test_restore_names_slot_and_page() -> None:
    tiers = tiers_of(2)
    saved(tiers, 1, 2)
    held = tiers.hold([name_of(1), name_of(2), name_of(3)])
    moves = tiers.issue([(held[0], PageIndex(5)), (held[1], PageIndex(3))], PREFILL)
    assert moves.restores == (PageRestore(HostSlot(0), PageIndex(5)), PageRestore(HostSlot(1), PageIndex(3)))
    tiers.settle(moves)
    assert tiers.log.counts["host_restored_pages"] == 2


def test_slot_is_not_overwritten_by_the_step_that_reads_it() -> None:
    tiers = tiers_of(1)
    saved(tiers, 1)
    held = tiers.hold([name_of(1)])
    tiers.save(evicted(2))
    moves = tiers.issue([(held[0], PageIndex(0))], PREFILL)
    assert moves.saves == ()
    tiers.settle(moves)
    tiers.save(evicted(2))
    assert len(run(tiers, PREFILL).saves) == 1


def test_page_can_be_restored_by_the_step_that_saves_it() -> None:
    tiers = tiers_of(1)
    run(tiers, PREFILL)
    tiers.save(evicted(1))
    assert len(tiers.hold([name_of(1)])) == 1


def test_pages_that_are_given_back_can_be_evicted_the_last_first() -> None:
    tiers = tiers_of(2)
    saved(tiers, 1, 2)
    tiers.release(tiers.hold([name_of(1), name_of(2)]))
    saved(tiers, 3)
    assert [tiers.host.slots.find(name_of(number)) is not None for number in (1, 2)] == [True, False]


def test_nothing_is_restored_that_is_sooner_computed() -> None:
    tiers = tiers_of(1, is_cheap=False)
    saved(tiers, 1)
    assert tiers.hold([name_of(1)]) == []


def test_one_page_is_tried_after_many_were_refused() -> None:
    tiers = tiers_of(2, is_cheap=False)
    saved(tiers, 1, 2)
    held = [tiers.hold([name_of(1), name_of(2)]) for _ in range(TRIAL_EVERY)]
    assert [len(pages) for pages in held] == [0] * (TRIAL_EVERY - 1) + [1]


def test_nothing_is_restored_before_computing_was_measured() -> None:
    tiers = tiers_of(1)
    tiers.save(evicted(1))
    assert tiers.hold([name_of(1)]) == []


def test_only_steps_of_prompts_tell_what_computing_takes() -> None:
    tiers = tiers_of(1)
    run(tiers, [1, 1, 1, 2])
    assert tiers.prices.token.seconds_per_unit is None
    run(tiers, [1, 1, 6])
    assert tiers.prices.token.seconds_per_unit == pytest.approx(1 / 8)


def test_step_that_waited_for_the_one_before_is_measured_from_its_end() -> None:
    below = FakeTiers(1, PAGE_SIZE)
    first = below.tiers.issue([], [1])
    second = below.tiers.issue([], PREFILL)
    below.clock.now = 100
    below.tiers.settle(first)
    below.tiers.settle(second)
    assert below.tiers.prices.token.seconds_per_unit == pytest.approx(1 / 16)


def test_restores_are_priced_by_what_the_runner_measured() -> None:
    tiers = tiers_of(1)
    tiers.take_restore_times = lambda: [(2, 8.0)]
    run(tiers, PREFILL)
    assert tiers.prices.host_page.seconds_per_unit == pytest.approx(8.0 / 2.9, rel=1e-6)


def test_steps_are_settled_in_order() -> None:
    tiers = tiers_of(1)
    tiers.issue([], PREFILL)
    with pytest.raises(AssertionError, match="out of order"):
        tiers.settle(tiers.issue([], PREFILL))


def test_without_a_disk_nobody_waits_for_it() -> None:
    assert tiers_of(1).fetch([name_of(1)]) is None


def test_what_is_cleared_is_not_there_even_if_its_save_was_on_its_way() -> None:
    tiers = tiers_of(2)
    saved(tiers, 1)
    tiers.save(evicted(2))
    tiers.clear()
    run(tiers, PREFILL)
    assert len(tiers.host.slots) == 0
    saved(tiers, 3, 4)
    assert len(tiers.host.slots) == 2
