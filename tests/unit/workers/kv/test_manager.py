"""Pages of sequences: by example, and by random operations with the content checked after each."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvasir_protocol.ids import PageIndex
from kvasir_workers.kv.manager import KvManager, PageCopy, Reuse, pages_for, settle_copies, take_restores
from kvasir_workers.kv.page_pool import PageState
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fake_tiers import FakeTiers
from tests.unit.workers.fakes import make_request

PAGE_SIZE = 3


def sequence_of(tokens: list[int], name: str = "a", salt: str = "") -> Sequence:
    return Sequence(make_request(name, tokens, salt=salt))


def computed(kv: KvManager, tokens: list[int], name: str = "a", salt: str = "") -> Sequence:
    """A sequence whose tokens but the last are all computed."""
    sequence = sequence_of(tokens, name, salt)
    kv.attach_prefix(sequence)
    assert kv.try_grow(sequence, len(tokens) - 1)
    sequence.num_computed = len(tokens) - 1
    kv.publish_computed(sequence)
    return sequence


def kv_of(num_pages: int) -> KvManager:
    """One that takes over all it can."""
    return KvManager(num_pages, PAGE_SIZE, Reuse(min_copied_tokens=1, min_awaited_pages=2))


TEXT = [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("num_tokens", "expected"), [(0, 0), (1, 1), (3, 1), (4, 2), (6, 2)])
def test_pages_for_rounds_up(num_tokens: int, expected: int) -> None:
    assert pages_for(num_tokens, PAGE_SIZE) == expected


def test_equal_prefix_shares_its_full_pages() -> None:
    kv = KvManager(8, PAGE_SIZE)
    first = computed(kv, TEXT)
    second = sequence_of([*TEXT[:6], 9], "b")
    kv.attach_prefix(second)
    assert (second.pages, second.num_computed) == (first.pages[:2], 6)


def test_last_token_is_always_left_to_compute() -> None:
    kv = KvManager(8, PAGE_SIZE)
    computed(kv, TEXT)
    second = sequence_of(TEXT[:6], "b")
    kv.attach_prefix(second)
    assert second.num_computed == 5


def test_another_salt_shares_nothing() -> None:
    kv = KvManager(8, PAGE_SIZE)
    computed(kv, TEXT, salt="tenant-1")
    second = sequence_of(TEXT, "b", salt="tenant-2")
    kv.attach_prefix(second)
    assert (second.pages, second.num_computed) == ([], 0)


def test_prefix_outlives_its_sequence() -> None:
    kv = KvManager(8, PAGE_SIZE)
    kv.detach(computed(kv, TEXT))
    second = sequence_of(TEXT, "b")
    kv.attach_prefix(second)
    assert second.num_computed == 6


def test_without_caching_no_page_outlives_its_sequence() -> None:
    kv = KvManager(8, PAGE_SIZE, Reuse(enabled=False))
    kv.detach(computed(kv, TEXT))
    second = sequence_of(TEXT, "b")
    kv.attach_prefix(second)
    assert (second.num_computed, kv.pool.num_free) == (0, 8)


def test_same_content_computed_twice_is_kept_once() -> None:
    kv = KvManager(8, PAGE_SIZE)
    first, second = sequence_of(TEXT), sequence_of(TEXT, "b")
    for sequence in (first, second):
        kv.attach_prefix(sequence)
        assert kv.try_grow(sequence, 6)
    for sequence in (first, second):
        sequence.num_computed = 6
        kv.publish_computed(sequence)
    assert (second.pages, kv.num_used) == (first.pages, 2)


def test_page_that_is_not_full_is_never_found() -> None:
    kv = KvManager(8, PAGE_SIZE)
    sequence = sequence_of(TEXT)
    kv.attach_prefix(sequence)
    assert kv.try_grow(sequence, 5)
    sequence.num_computed = 5
    kv.publish_computed(sequence)
    assert list(kv.tree.pages()) == sequence.pages[:1]


def test_abort_inserts_nothing() -> None:
    kv = KvManager(8, PAGE_SIZE)
    sequence = sequence_of(TEXT)
    kv.attach_prefix(sequence)
    assert kv.try_grow(sequence, 7)
    kv.detach(sequence)
    assert (list(kv.tree.pages()), kv.pool.num_free) == ([], 8)


# Pages that are shared in part


def near(kv: KvManager, tokens: list[int], name: str = "b", **request: object) -> Sequence:
    """A newcomer with what it finds."""
    sequence = sequence_of(tokens, name, **request)  # type: ignore[arg-type]
    kv.attach_prefix(sequence)
    return sequence


def finished(kv: KvManager, tokens: list[int], name: str = "a", salt: str = "") -> Sequence:
    """A sequence that ended with tokens, the last of which has no keys and values."""
    sequence = computed(kv, tokens, name, salt)
    kv.publish_last(sequence)
    kv.detach(sequence)
    return sequence


def test_page_that_is_left_in_its_middle_is_copied() -> None:
    kv = kv_of(8)
    first = computed(kv, TEXT)
    second = near(kv, [1, 2, 3, 4, 5, 9, 9, 9])
    assert (second.pages, second.num_computed, second.copy_source) == (first.pages[:1], 5, first.pages[1])
    assert kv.try_grow(second, 8)
    assert settle_copies(kv, [second]) == (PageCopy(first.pages[1], second.pages[1], 2),)


def test_copied_page_is_the_newcomers_own() -> None:
    kv = kv_of(8)
    computed(kv, TEXT)
    second = near(kv, [1, 2, 3, 4, 5, 9, 9, 9])
    assert kv.try_grow(second, 8)
    assert kv.pool.state(second.pages[1]) is PageState.FILLING
    second.num_computed = 7
    kv.publish_computed(second)
    assert (second.copy_source, kv.tree.find(second.page_hashes[1])) == (None, second.pages[1])


def test_source_is_held_until_the_step_has_run() -> None:
    kv = kv_of(4)
    finished(kv, TEXT[:6])
    second = near(kv, [1, 2, 3, 4, 9, 9, 9])
    assert kv.try_grow(second, 5)
    assert not kv.try_grow(sequence_of([7] * 6, "c"), 6), "the source was evicted before the copy was made"
    second.num_computed = 5
    kv.publish_computed(second)
    assert kv.try_grow(sequence_of([7] * 6, "c"), 6)


def test_newcomer_that_leaves_gives_the_source_back() -> None:
    kv = kv_of(8)
    kv.detach(computed(kv, TEXT))
    second = near(kv, [1, 2, 3, 4, 9])
    kv.detach(second)
    assert (second.copy_source, second.num_computed, kv.num_used) == (None, 0, 0)


def test_too_few_tokens_are_not_copied() -> None:
    kv = KvManager(8, PAGE_SIZE, Reuse(min_copied_tokens=2))
    computed(kv, TEXT)
    assert near(kv, [1, 2, 3, 4, 9, 9]).num_computed == 3
    assert near(kv, [1, 2, 3, 4, 5, 9], "c").num_computed == 5


def test_all_that_there_is_to_copy_is_never_too_little() -> None:
    kv = KvManager(8, PAGE_SIZE, Reuse(min_copied_tokens=2))
    finished(kv, TEXT[:5])
    assert near(kv, [1, 2, 3, 4, 9]).num_computed == 4


def test_without_copies_only_whole_pages_are_found() -> None:
    kv = KvManager(8, PAGE_SIZE, Reuse(min_copied_tokens=None))
    finished(kv, TEXT[:6])
    assert (near(kv, TEXT).num_computed, len(list(kv.tree.pages()))) == (3, 1)


def growing(kv: KvManager, tokens: list[int], name: str = "b") -> Sequence:
    """A newcomer with what it finds, and pages for all."""
    sequence = near(kv, tokens, name)
    assert kv.try_grow(sequence, len(tokens))
    return sequence


def test_who_goes_on_alone_writes_into_the_page_itself() -> None:
    kv = kv_of(8)
    finished(kv, TEXT[:6])
    (page,) = [cached.page for cached in kv.tree.snapshot() if not cached.is_full]
    second = growing(kv, [*TEXT[:5], 9, 9, 9])
    assert settle_copies(kv, [second]) == ()
    assert (second.num_computed, second.pages[1], kv.num_used) == (5, page, 3)
    assert kv.pool.state(second.pages[1]) is PageState.FILLING
    kv.audit(second.held_pages)


def test_page_that_is_not_needed_after_all_stays_held_while_a_step_may_have_to_save_it() -> None:
    kv = KvManager(8, PAGE_SIZE, Reuse(min_copied_tokens=1), tiers=FakeTiers(8, PAGE_SIZE).tiers)
    finished(kv, TEXT[:6])
    second = growing(kv, [*TEXT[:5], 9, 9, 9])
    (_, taken, _) = second.pages
    assert settle_copies(kv, [second]) == ()
    assert second.replaced_pages == [taken]
    kv.audit(second.held_pages)
    second.num_computed = 6
    kv.publish_computed(second)
    assert (second.replaced_pages, kv.pool.state(taken)) == ([], PageState.FREE)


def test_page_that_is_written_again_is_found_when_it_is_full() -> None:
    kv = kv_of(8)
    finished(kv, TEXT[:6])
    second = growing(kv, [*TEXT[:5], 9, 9, 9])
    settle_copies(kv, [second])
    assert near(kv, [*TEXT[:5], 8], "c").num_computed == 3
    second.num_computed = 7
    kv.publish_computed(second)
    assert near(kv, [*TEXT[:5], 8], "d").num_computed == 5


def test_those_who_go_on_differently_copy() -> None:
    kv = kv_of(9)
    finished(kv, TEXT[:6])
    both = [growing(kv, [*TEXT[:5], 8, 8], "b"), growing(kv, [*TEXT[:5], 9, 9], "c")]
    copies = settle_copies(kv, both)
    assert [copy.target for copy in copies] == [sequence.pages[1] for sequence in both]
    assert {copy.num_tokens for copy in copies} == {2}


def test_page_is_copied_by_who_leaves_it_before_its_end() -> None:
    kv = kv_of(8)
    finished(kv, TEXT[:6])
    assert len(settle_copies(kv, [growing(kv, [*TEXT[:4], 9, 9])])) == 1


def test_full_page_is_copied_even_by_its_only_reader() -> None:
    kv = kv_of(8)
    kv.detach(computed(kv, TEXT))
    assert len(settle_copies(kv, [growing(kv, [1, 2, 3, 4, 5, 9, 9])])) == 1


def test_another_salt_copies_nothing() -> None:
    kv = kv_of(8)
    computed(kv, TEXT, salt="tenant-1")
    assert near(kv, [1, 2, 9, 9], salt="tenant-2").copy_source is None


def test_whole_pages_only_if_it_is_asked_for() -> None:
    kv = kv_of(8)
    computed(kv, TEXT)
    second = sequence_of([1, 2, 3, 4, 5, 9, 9], "b")
    kv.attach_prefix(second, can_copy=False)
    assert (second.num_computed, second.copy_source) == (3, None)


def test_ended_sequence_is_found_up_to_its_last_computed_token() -> None:
    kv = kv_of(8)
    finished(kv, TEXT[:6])
    assert near(kv, [*TEXT[:6], 8, 9]).num_computed == 5


def test_sequence_that_did_not_end_well_leaves_no_part() -> None:
    kv = kv_of(8)
    sequence = computed(kv, TEXT[:6])
    kv.detach(sequence)
    assert near(kv, [*TEXT[:6], 8, 9]).num_computed == 3


def test_part_that_is_known_already_is_not_kept_twice() -> None:
    kv = kv_of(8)
    finished(kv, TEXT)
    finished(kv, [1, 2, 3, 4, 5, 8], "b")
    assert (len(list(kv.tree.pages())), kv.pool.num_free) == (2, 6)


def test_part_goes_when_the_whole_is_there() -> None:
    kv = kv_of(8)
    finished(kv, [1, 2, 3, 4, 5])
    assert len(list(kv.tree.pages())) == 2
    finished(kv, TEXT, "b")
    assert (len(list(kv.tree.pages())), kv.pool.num_free) == (2, 6)


def test_last_page_published_at_the_end_is_ready_and_known() -> None:
    kv = kv_of(8)
    sequence = computed(kv, TEXT[:6])
    kv.publish_last(sequence)
    assert [kv.pool.state(page) for page in sequence.pages] == [PageState.READY] * 2
    assert list(kv.tree.pages()) == sequence.pages


# Pages that another one is computing


def running(kv: KvManager, tokens: list[int], name: str = "a") -> Sequence:
    """Admitted, nothing computed yet."""
    sequence = near(kv, tokens, name)
    assert kv.try_grow(sequence, len(tokens))
    kv.announce(sequence)
    return sequence


def test_newcomer_awaits_the_pages_that_a_running_one_computes() -> None:
    kv = kv_of(20)
    first, second = running(kv, TEXT), sequence_of([*TEXT[:6], 9], "b")
    assert kv.awaits_others(second)
    first.num_computed = 6
    kv.publish_computed(first)
    assert not kv.awaits_others(second)
    kv.attach_prefix(second)
    assert second.num_computed == 6


def test_newcomer_with_little_in_common_does_not_wait() -> None:
    kv = kv_of(20)
    running(kv, TEXT)
    assert not kv.awaits_others(sequence_of([*TEXT[:5], 9, 9, 9], "b"))
    assert not kv.awaits_others(sequence_of([9, 9, 9, 9], "c"))


def test_newcomer_of_another_salt_does_not_wait() -> None:
    kv = kv_of(20)
    running(kv, TEXT)
    assert not kv.awaits_others(sequence_of(TEXT, "b", salt="x"))


def test_newcomer_takes_over_if_the_running_one_ends() -> None:
    kv = kv_of(20)
    first, second, third = running(kv, TEXT), sequence_of(TEXT, "b"), sequence_of(TEXT, "c")
    assert kv.awaits_others(second)
    kv.detach(first)
    assert not kv.awaits_others(second)
    running(kv, TEXT, "b")
    assert kv.awaits_others(third)


def test_nobody_waits_without_caching() -> None:
    kv = KvManager(20, PAGE_SIZE, Reuse(enabled=False, min_awaited_pages=1))
    running(kv, TEXT)
    assert not kv.awaits_others(sequence_of(TEXT, "b"))


# What lies below


def with_evicted_text(num_host_slots: int = 8) -> tuple[KvManager, FakeTiers]:
    """The full pages of TEXT are in host memory, and not on the device."""
    below = FakeTiers(num_host_slots, PAGE_SIZE)
    kv = KvManager(4, PAGE_SIZE, Reuse(min_copied_tokens=None), tiers=below.tiers)
    finished(kv, TEXT)
    other = sequence_of([9] * 12, "other")
    assert kv.try_grow(other, 12)
    below.tiers.settle(below.tiers.issue([], [12]))
    kv.detach(other)
    return kv, below


def test_newcomer_restores_only_when_it_may() -> None:
    kv, _ = with_evicted_text()
    second = sequence_of(TEXT, "b")
    kv.attach_prefix(second)
    assert (second.num_computed, second.restored_from) == (0, [])
    kv.attach_prefix(second, can_restore=True)
    assert (second.num_computed, len(second.restored_from), second.pages) == (6, 2, [])
    kv.detach(second)
    assert (second.num_computed, second.restored_from) == (0, [])
    kv.audit([])


def test_restores_go_to_the_pages_after_those_that_are_shared() -> None:
    kv, _ = with_evicted_text()
    first = computed(kv, TEXT[:4], "first")
    second = sequence_of(TEXT, "b")
    kv.attach_prefix(second, can_restore=True)
    assert (second.pages, second.num_computed) == (first.pages[:1], 6)
    assert kv.try_grow(second, 7)
    ((stored, page),) = take_restores([second])
    assert (stored.identity.token_ids, page, second.restored_from) == (TEXT[3:6], second.pages[1], [])


def test_pages_that_others_fill_are_not_saved() -> None:
    below = FakeTiers(8, PAGE_SIZE)
    kv = KvManager(4, PAGE_SIZE, tiers=below.tiers)
    finished(kv, TEXT)
    reserved = sequence_of([9] * 12, "reserved")
    assert kv.try_grow(reserved, 12, fills_in_step=False)
    assert below.tiers.issue([], [1]).saves == ()


def test_clearing_forgets_what_lies_below() -> None:
    kv, below = with_evicted_text()
    kv.clear_cache()
    assert len(below.tiers.host.slots) == 0


# Room


def test_cheap_pages_go_first() -> None:
    kv = kv_of(4)
    for name, priority in (("a", 5), ("b", 0)):
        sequence = Sequence(make_request(name, [priority] * 4, cache_priority=priority))
        kv.attach_prefix(sequence)
        assert kv.try_grow(sequence, 3)
        sequence.num_computed = 3
        kv.publish_computed(sequence)
        kv.detach(sequence)
    assert kv.try_grow(sequence_of([9] * 9, "c"), 9)
    assert near(kv, [5] * 4, "d").num_computed == 3


def test_cleared_cache_keeps_what_is_read() -> None:
    kv = kv_of(8)
    kv.detach(computed(kv, [9] * 7))
    reader = computed(kv, TEXT, "b")
    kv.clear_cache()
    assert (list(kv.tree.pages()), kv.pool.num_free) == (reader.pages, 6)
    kv.audit(reader.pages)


def test_growing_beyond_what_is_there_changes_nothing() -> None:
    kv = KvManager(3, PAGE_SIZE)
    sequence = sequence_of(TEXT)
    assert kv.try_grow(sequence, 4)
    before = list(sequence.pages)
    assert not kv.try_grow(sequence, 10)
    assert (sequence.pages, kv.num_available) == (before, 1)


def test_growing_evicts_leaves_before_their_parents() -> None:
    kv = KvManager(3, PAGE_SIZE)
    first = computed(kv, [*TEXT, 8, 9, 10])
    pages = list(first.pages)
    kv.detach(first)
    assert kv.try_grow(sequence_of([9, 9], "b"), 2)
    assert list(kv.tree.pages()) == pages[:2]


def test_growing_never_evicts_what_somebody_reads() -> None:
    kv = KvManager(3, PAGE_SIZE)
    reader = computed(kv, TEXT)
    assert not kv.try_grow(sequence_of([9] * 6, "b"), 6)
    assert list(kv.tree.pages()) == reader.pages


def test_pinned_page_outlives_its_sequence_until_it_is_released() -> None:
    kv = KvManager(2, PAGE_SIZE)
    sequence = computed(kv, TEXT)
    pages = list(sequence.pages)
    kv.pin(pages)
    kv.detach(sequence)
    assert kv.num_available == 0
    kv.release(pages)
    assert kv.num_available == 2


def test_attached_pages_cannot_be_evicted_by_their_own_sequence() -> None:
    kv = KvManager(3, PAGE_SIZE)
    kv.detach(computed(kv, TEXT))
    second = sequence_of([*TEXT[:6], 1, 1, 1, 1], "b")
    kv.attach_prefix(second)
    assert not kv.try_grow(second, 10)
    assert second.num_computed == 6


def test_sequence_with_pages_cannot_attach() -> None:
    kv = KvManager(3, PAGE_SIZE)
    with pytest.raises(AssertionError, match="a has pages already"):
        kv.attach_prefix(computed(kv, TEXT))


class RandomTraffic(RuleBasedStateMachine):
    """Sequences over two tokens, so that prefixes meet often, in a pool that is always too small."""

    @initialize(
        num_pages=st.integers(2, 9),
        page_size=st.integers(1, 5),
        reuse=st.builds(
            Reuse,
            enabled=st.sampled_from([True, True, False]),
            min_copied_tokens=st.none() | st.integers(1, 3),
            min_awaited_pages=st.integers(1, 2),
        ),
    )
    def start(self, num_pages: int, page_size: int, reuse: Reuse) -> None:
        self.kv = KvManager(num_pages, page_size, reuse)
        self.reuse = reuse
        self.content = np.full((num_pages, page_size), -1)
        self.sequences: list[Sequence] = []
        self.pins: list[PageIndex] = []
        self.num_made = 0

    def pick(self, index: int) -> Sequence:
        return self.sequences[index % len(self.sequences)]

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14),
        salt=st.sampled_from(["", "", "x"]),
        can_copy=st.sampled_from([True, True, False]),
        cache_priority=st.integers(0, 2),
    )
    def attach(self, tokens: list[int], salt: str, can_copy: bool, cache_priority: int) -> None:
        self.num_made += 1
        request = make_request(f"s{self.num_made}", tokens, salt=salt, cache_priority=cache_priority)
        sequence = Sequence(request)
        self.kv.attach_prefix(sequence, can_copy=can_copy)
        assert sequence.num_computed < sequence.num_tokens
        num_wanted = sequence.num_reusable - len(sequence.pages) * self.kv.page_size
        assert sequence.num_copied in (0, num_wanted) or sequence.num_copied >= (self.reuse.min_copied_tokens or 0)
        self.sequences.append(sequence)

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def ask_whether_to_wait(self, tokens: list[int]) -> None:
        """Only for pages that are not there, and that a sequence which still is there computes."""
        newcomer = sequence_of(tokens, "newcomer")
        if self.kv.awaits_others(newcomer):
            assert newcomer.awaited_page is not None
            assert self.kv.tree.find(newcomer.awaited_page) is None
            assert any(newcomer.awaited_page in sequence.page_hashes for sequence in self.sequences)

    @rule()
    def clear(self) -> None:
        self.kv.clear_cache()
        assert self.kv.tree.num_idle == 0

    @precondition(lambda self: self.sequences)
    @rule(index=st.integers(0, 99), num_new=st.integers(1, 6))
    def compute(self, index: int, num_new: int) -> None:
        """One step of one sequence: grow, write (only what is its alone and not published), publish."""
        sequence = self.pick(index)
        end = min(sequence.num_computed + num_new, sequence.num_tokens)
        available, pages = self.kv.num_available, list(sequence.pages)
        if not self.kv.try_grow(sequence, end):
            assert (self.kv.num_available, sequence.pages) == (available, pages)
            return
        self.kv.announce(sequence)
        for copy in settle_copies(self.kv, [sequence]):
            assert self.kv.pool.state(copy.target) is PageState.FILLING
            self.content[copy.target, : copy.num_tokens] = self.content[copy.source, : copy.num_tokens]
        for position in range(sequence.num_computed, end):
            page, offset = sequence.pages[position // self.kv.page_size], position % self.kv.page_size
            assert self.kv.pool.state(page) is PageState.FILLING
            assert self.kv.pool.references(page) == 1
            self.content[page, offset] = sequence.token_ids[position]
        sequence.num_computed = end
        self.kv.publish_computed(sequence)

    @precondition(lambda self: self.sequences)
    @rule(index=st.integers(0, 99), token=st.integers(0, 1))
    def append(self, index: int, token: int) -> None:
        sequence = self.pick(index)
        if sequence.num_computed == sequence.num_tokens:
            sequence.token_ids.append(token)

    @precondition(lambda self: self.sequences)
    @rule(index=st.integers(0, 99))
    def end(self, index: int) -> None:
        """An abort or a preemption: the same to the pages. Nothing enters the tree."""
        known = set(self.kv.tree.pages())
        sequence = self.sequences.pop(index % len(self.sequences))
        self.kv.detach(sequence)
        assert set(self.kv.tree.pages()) == known

    @precondition(lambda self: self.sequences)
    @rule(index=st.integers(0, 99))
    def preempt(self, index: int) -> None:
        sequence = self.pick(index)
        self.kv.detach(sequence)
        self.kv.attach_prefix(sequence)

    @precondition(lambda self: self.sequences)
    @rule(index=st.integers(0, 99))
    def finish(self, index: int) -> None:
        """All that was computed may be found again."""
        sequence = self.sequences.pop(index % len(self.sequences))
        if sequence.copy_source is not None:
            self.kv.detach(sequence)
            return
        num_computed = sequence.num_computed
        self.kv.publish_last(sequence)
        self.kv.detach(sequence)
        again = make_request("again", [*sequence.token_ids[:num_computed], 9], salt=sequence.request.cache_salt)
        probe = Sequence(again)
        self.kv.attach_prefix(probe)
        if self.reuse.enabled:
            num_lost = 0 if self.reuse.min_copied_tokens is not None else num_computed % self.kv.page_size
            assert probe.num_computed == num_computed - num_lost
        self.kv.detach(probe)

    @precondition(lambda self: self.sequences)
    @rule(index=st.integers(0, 99))
    def hand_over(self, index: int) -> None:
        """All pages of a sequence that ends are published and pinned."""
        sequence = self.sequences.pop(index % len(self.sequences))
        if sequence.copy_source is None:
            self.kv.publish_last(sequence)
            self.kv.pin(sequence.pages)
            self.pins += sequence.pages
        self.kv.detach(sequence)

    @precondition(lambda self: self.pins)
    @rule(index=st.integers(0, 99))
    def unpin(self, index: int) -> None:
        self.kv.release([self.pins.pop(index % len(self.pins))])

    @invariant()
    def books_agree(self) -> None:
        self.kv.audit([*(page for sequence in self.sequences for page in sequence.held_pages), *self.pins])

    @invariant()
    def cached_pages_hold_what_they_are_known_for(self) -> None:
        for cached in self.kv.tree.snapshot():
            assert self.content[cached.page, : len(cached.token_ids)].tolist() == cached.token_ids

    @invariant()
    def only_sequences_that_are_there_are_waited_for(self) -> None:
        assert self.kv.in_flight.computers() <= {sequence.request_id for sequence in self.sequences}

    @invariant()
    def sequences_read_their_own_tokens(self) -> None:
        for sequence in self.sequences:
            pages = sequence.pages
            if sequence.copy_source is not None:
                pages = [*pages[: sequence.num_published_pages], sequence.copy_source]
            read = self.content[pages].reshape(-1)[: sequence.num_computed].tolist()
            assert read == sequence.token_ids[: sequence.num_computed]

    @invariant()
    def without_caching_nothing_is_known(self) -> None:
        assert self.reuse.enabled or not list(self.kv.tree.pages())

    def teardown(self) -> None:
        if hasattr(self, "kv"):
            for sequence in self.sequences:
                self.kv.detach(sequence)
            self.kv.release(self.pins)
            self.kv.audit([])
            assert self.kv.num_available == self.kv.pool.num_pages


TestRandomTraffic = RandomTraffic.TestCase
TestRandomTraffic.settings = settings(max_examples=40, stateful_step_count=40)
