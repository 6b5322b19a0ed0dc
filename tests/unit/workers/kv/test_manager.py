"""Pages of sequences: by example, and by random operations with the content checked after each."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvasir_protocol.ids import PageIndex
from kvasir_workers.kv.manager import KvManager, pages_for
from kvasir_workers.kv.page_pool import PageState
from kvasir_workers.sequence import Sequence
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
    assert second.num_computed == 3


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
    kv = KvManager(8, PAGE_SIZE, enable_prefix_caching=False)
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


def test_last_page_published_at_the_end_stays_unknown() -> None:
    kv = KvManager(8, PAGE_SIZE)
    sequence = computed(kv, TEXT[:6])
    kv.publish_last(sequence)
    assert [kv.pool.state(page) for page in sequence.pages] == [PageState.READY] * 2
    assert list(kv.tree.pages()) == sequence.pages[:1]


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

    @initialize(num_pages=st.integers(2, 9), page_size=st.integers(1, 4), caches=st.booleans())
    def start(self, num_pages: int, page_size: int, caches: bool) -> None:
        self.kv = KvManager(num_pages, page_size, enable_prefix_caching=caches)
        self.content = np.full((num_pages, page_size), -1)
        self.sequences: list[Sequence] = []
        self.pins: list[PageIndex] = []
        self.num_made = 0

    def pick(self, index: int) -> Sequence:
        return self.sequences[index % len(self.sequences)]

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14), salt=st.sampled_from(["", "", "x"]))
    def attach(self, tokens: list[int], salt: str) -> None:
        self.num_made += 1
        sequence = sequence_of(tokens, f"s{self.num_made}", salt)
        self.kv.attach_prefix(sequence)
        assert sequence.num_computed < sequence.num_tokens
        self.sequences.append(sequence)

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
        """A finish, an abort or a preemption: the same to the pages. Nothing enters the tree."""
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
    def hand_over(self, index: int) -> None:
        """All pages of a sequence that ends are published and pinned."""
        sequence = self.sequences.pop(index % len(self.sequences))
        if len(sequence.pages) == pages_for(sequence.num_computed, self.kv.page_size):
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
        self.kv.audit([*(page for sequence in self.sequences for page in sequence.pages), *self.pins])

    @invariant()
    def sequences_read_their_own_tokens(self) -> None:
        for sequence in self.sequences:
            read = self.content[sequence.pages].reshape(-1)[: sequence.num_computed].tolist()
            assert read == sequence.token_ids[: sequence.num_computed]

    @invariant()
    def without_caching_nothing_is_known(self) -> None:
        assert self.kv._caches or not list(self.kv.tree.pages())

    def teardown(self) -> None:
        if hasattr(self, "kv"):
            for sequence in self.sequences:
                self.kv.detach(sequence)
            self.kv.release(self.pins)
            self.kv.audit([])
            assert self.kv.num_available == self.kv.pool.num_pages


TestRandomTraffic = RandomTraffic.TestCase
TestRandomTraffic.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
