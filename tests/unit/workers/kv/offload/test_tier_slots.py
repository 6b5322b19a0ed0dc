"""Slots of a tier: by example, and by random operations with the books checked after each."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvasir_workers.kv.offload.tier_slots import StoredPage, TierSlots
from tests.unit.workers.kv.offload.pages import evicted, name_of


def take(slots: TierSlots, number: int, *, priority: int = 0) -> StoredPage:
    stored, _ = slots.take(evicted(number, priority=priority))
    assert stored is not None
    return stored


def ready(slots: TierSlots, number: int, *, priority: int = 0) -> StoredPage:
    stored = take(slots, number, priority=priority)
    slots.publish(stored)
    return stored


def test_full_tier_gives_the_place_of_the_page_that_came_first() -> None:
    slots = TierSlots(2)
    first, _ = ready(slots, 1), ready(slots, 2)
    stored, gone = slots.take(evicted(3))
    assert stored is not None
    assert (gone, stored.slot, slots.find(name_of(1))) == (first, first.slot, None)


def test_dear_page_outlives_cheap_ones() -> None:
    slots = TierSlots(2)
    ready(slots, 1, priority=1)
    cheap = ready(slots, 2)
    assert slots.take(evicted(3))[1] is cheap


def test_page_that_is_below_too_goes_before_others() -> None:
    slots = TierSlots(2)
    first, second = ready(slots, 1), ready(slots, 2)
    slots.set_spare(second, is_spare=True)
    assert slots.take(evicted(3))[1] is second
    slots.set_spare(second, is_spare=True)
    assert slots.find(name_of(1)) is first
    slots.audit()


def test_touched_page_outlives_others() -> None:
    slots = TierSlots(2)
    first, second = ready(slots, 1), ready(slots, 2)
    slots.touch(first)
    assert slots.take(evicted(3))[1] is second


def test_touch_may_raise_the_priority() -> None:
    slots = TierSlots(2)
    first, second = ready(slots, 1), ready(slots, 2)
    slots.touch(first, priority=1)
    slots.touch(second)
    assert slots.take(evicted(3))[1] is second


def test_slot_that_is_being_filled_or_read_is_not_given_away() -> None:
    slots = TierSlots(2)
    take(slots, 1)
    slots.hold(ready(slots, 2))
    assert slots.take(evicted(3)) == (None, None)


def test_page_that_is_being_copied_keeps_its_slot_and_its_place_in_line() -> None:
    slots = TierSlots(2)
    first, second = ready(slots, 1), ready(slots, 2)
    slots.begin_copy(first)
    assert slots.take(evicted(3))[1] is second
    slots.end_copy(first)
    assert slots.take(evicted(4))[1] is first


def test_page_is_found_while_it_is_being_filled() -> None:
    slots = TierSlots(1)
    stored = take(slots, 1)
    assert slots.find(name_of(1)) is stored


def test_dropped_slot_is_free_again() -> None:
    slots = TierSlots(1)
    slots.drop(take(slots, 1))
    assert (slots.find(name_of(1)), slots.take(evicted(2))[1]) == (None, None)


def test_forgotten_page_keeps_its_slot_until_nobody_uses_it() -> None:
    slots = TierSlots(1)
    stored = ready(slots, 1)
    slots.hold(stored)
    assert slots.forget_all() == [stored]
    assert (slots.find(name_of(1)), slots.take(evicted(2))) == (None, (None, None))
    slots.release(stored)
    assert slots.take(evicted(2))[0] is not None


def test_page_that_was_forgotten_before_it_came_gives_its_slot_back() -> None:
    slots = TierSlots(1)
    stored = take(slots, 1)
    slots.forget(stored)
    slots.publish(stored)
    assert slots.take(evicted(1))[0] is not None


def test_audit_finds_a_lost_slot() -> None:
    slots = TierSlots(2)
    slots.take(evicted(1))
    slots._by_name.clear()
    with pytest.raises(AssertionError, match="slots are lost"):
        slots.audit()


class RandomSlots(RuleBasedStateMachine):
    """Transfers that begin and end in any order."""

    @initialize(num_slots=st.integers(1, 4))
    def start(self, num_slots: int) -> None:
        self.slots = TierSlots(num_slots)
        self.filling: list[StoredPage] = []
        self.read: list[StoredPage] = []
        self.copied: list[StoredPage] = []

    @rule(number=st.integers(0, 7), priority=st.integers(0, 1))
    def take(self, number: int, priority: int) -> None:
        if self.slots.find(name_of(number)) is None:
            stored, gone = self.slots.take(evicted(number, priority=priority))
            assert gone is None or (stored is not None and gone.slot == stored.slot)
            self.filling += [stored] if stored is not None else []

    @precondition(lambda self: self.filling)
    @rule(index=st.integers(0, 9), comes=st.booleans())
    def fill(self, index: int, comes: bool) -> None:
        stored = self.filling.pop(index % len(self.filling))
        if comes or stored.num_readers:
            self.slots.publish(stored)
        else:
            self.slots.drop(stored)

    @rule(number=st.integers(0, 7))
    def hold(self, number: int) -> None:
        if (stored := self.slots.find(name_of(number))) is not None:
            self.slots.hold(stored)
            self.read.append(stored)

    @precondition(lambda self: self.read)
    @rule(index=st.integers(0, 9))
    def release(self, index: int) -> None:
        self.slots.release(self.read.pop(index % len(self.read)))

    @rule(number=st.integers(0, 7))
    def begin_copy(self, number: int) -> None:
        stored = self.slots.find(name_of(number))
        if stored is not None and stored.is_ready and not stored.is_being_copied:
            self.slots.begin_copy(stored)
            self.copied.append(stored)

    @precondition(lambda self: self.copied)
    @rule(index=st.integers(0, 9))
    def end_copy(self, index: int) -> None:
        self.slots.end_copy(self.copied.pop(index % len(self.copied)))

    @rule(number=st.integers(0, 7), priority=st.integers(0, 2))
    def touch(self, number: int, priority: int) -> None:
        if (stored := self.slots.find(name_of(number))) is not None:
            self.slots.touch(stored, priority)

    @rule(number=st.integers(0, 7), is_spare=st.booleans())
    def set_spare(self, number: int, is_spare: bool) -> None:
        if (stored := self.slots.find(name_of(number))) is not None:
            self.slots.set_spare(stored, is_spare=is_spare)

    @rule(number=st.integers(0, 7))
    def forget(self, number: int) -> None:
        if (stored := self.slots.find(name_of(number))) is not None:
            self.slots.forget(stored)

    @invariant()
    def slots_in_use_are_different(self) -> None:
        users = [*getattr(self, "filling", []), *getattr(self, "read", []), *getattr(self, "copied", [])]
        for stored in users:
            assert not any(other is not stored and other.slot == stored.slot for other in users)

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "slots"):
            self.slots.audit()


TestRandomSlots = RandomSlots.TestCase
TestRandomSlots.settings = settings(max_examples=40, stateful_step_count=40)
