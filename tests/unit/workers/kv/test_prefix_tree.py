"""Which page holds which content, which one is nearest, and which goes first."""

import pytest

from kvasir_protocol.ids import PageHash, PageIndex
from kvasir_protocol.kv_events import Medium
from kvasir_protocol.page_hash import child_hash, page_hashes, root_hash
from kvasir_workers.kv.prefix_tree import CachedPage, PrefixTree, token_bytes

PAGE_SIZE = 2
ROOT = root_hash(PAGE_SIZE)
TOKENS = list(range(8))
HASHES = page_hashes(TOKENS, PAGE_SIZE)


def cached(page: int, token_ids: list[int], parent: PageHash = ROOT, *, priority: int = 0) -> CachedPage:
    return CachedPage(
        page=PageIndex(page),
        name=child_hash(parent, token_ids),
        parent=parent,
        content=token_bytes(token_ids),
        is_full=len(token_ids) == PAGE_SIZE,
        salt="" if parent == ROOT else None,
        priority=priority,
    )


def tree_of(*pages: int) -> PrefixTree:
    """One chain of pages, all in use."""
    tree = PrefixTree()
    for index, page in enumerate(pages):
        tree.insert(cached(page, TOKENS[2 * index : 2 * index + 2], HASHES[index - 1] if index else ROOT))
    tree.audit()
    return tree


def siblings(*contents: list[int]) -> PrefixTree:
    """First pages numbered from 0, all in use."""
    tree = PrefixTree()
    for page, content in enumerate(contents):
        tree.insert(cached(page, content))
    return tree


def set_idle(tree: PrefixTree, *pages: int) -> None:
    for page in pages:
        tree.set_idle(PageIndex(page))
        tree.audit()


def evict_all(tree: PrefixTree) -> list[int]:
    evicted = []
    while tree.num_idle:
        evicted.append(int(tree.evict().page))
        tree.audit()
    return evicted


def test_match_is_the_longest_known_prefix() -> None:
    assert tree_of(5, 6).match(HASHES) == [5, 6]


def test_match_stops_where_pages_were_evicted() -> None:
    tree = tree_of(5, 6, 7)
    set_idle(tree, 7, 6)
    tree.evict()
    assert tree.match(HASHES) == [5, 6]


def test_page_that_idles_longest_is_evicted_first() -> None:
    tree = siblings([1, 1], [2, 2], [3, 3])
    set_idle(tree, 1, 2, 0)
    assert evict_all(tree) == [1, 2, 0]


@pytest.mark.parametrize("order", [(5, 6, 7), (6, 5, 7), (7, 6, 5)])
def test_leaves_go_before_their_parents_whoever_lets_go_first(order: tuple[int, ...]) -> None:
    tree = tree_of(5, 6, 7)
    set_idle(tree, *order)
    assert evict_all(tree) == [7, 6, 5]


def test_page_above_a_used_one_is_not_evicted() -> None:
    tree = tree_of(5, 6, 7)
    set_idle(tree, 5, 7)
    assert (evict_all(tree), tree.num_idle) == ([7], 0)


def test_used_page_is_not_evicted() -> None:
    tree = siblings([1, 1], [2, 2])
    set_idle(tree, 0, 1)
    tree.set_used(PageIndex(0))
    assert evict_all(tree) == [1]


def test_page_that_is_used_again_keeps_what_is_above_it() -> None:
    tree = tree_of(5, 6)
    set_idle(tree, 6, 5)
    tree.set_used(PageIndex(6))
    tree.audit()
    assert tree.num_idle == 0


def test_page_that_was_used_again_goes_to_the_end_of_the_line() -> None:
    tree = siblings([1, 1], [2, 2])
    set_idle(tree, 0, 1)
    tree.set_used(PageIndex(0))
    set_idle(tree, 0)
    assert evict_all(tree) == [1, 0]


def test_low_priority_goes_first_however_fresh() -> None:
    tree = PrefixTree()
    for page, priority in enumerate((2, 0, 1, 0)):
        tree.insert(cached(page, [page, page], priority=priority))
    set_idle(tree, 0, 1, 2, 3)
    assert evict_all(tree) == [1, 3, 2, 0]


def test_use_with_a_higher_priority_makes_a_page_dearer_for_good() -> None:
    tree = siblings([1, 1], [2, 2])
    set_idle(tree, 0, 1)
    tree.set_used(PageIndex(0), 3)
    set_idle(tree, 0)
    tree.set_used(PageIndex(0), 1)
    set_idle(tree, 0)
    assert evict_all(tree) == [1, 0]


def test_evicted_page_is_forgotten() -> None:
    tree = tree_of(5)
    set_idle(tree, 5)
    tree.evict()
    assert (tree.find(HASHES[0]), PageIndex(5) in tree, list(tree.pages())) == (None, False, [])


def test_content_is_cached_once() -> None:
    with pytest.raises(AssertionError, match="page 9 duplicates page 5"):
        tree_of(5).insert(cached(9, TOKENS[:2]))


def test_page_has_one_content() -> None:
    with pytest.raises(AssertionError, match="page 5 is cached twice"):
        tree_of(5).insert(cached(5, [7, 7]))


def test_unknown_page_cannot_idle() -> None:
    with pytest.raises(AssertionError, match="not cached"):
        PrefixTree().set_idle(PageIndex(1))


# Pages that begin alike


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([1, 2, 3, 4], (1, 4)),
        ([1, 2, 3, 9], (1, 3)),
        ([1, 2, 9, 9], (0, 3)),
        ([2**31, 5, 0], (2, 2)),
        ([7], (None, 0)),
    ],
)
def test_closest_child_begins_with_most_of_the_tokens(wanted: list[int], expected: tuple[int | None, int]) -> None:
    tree = siblings([1, 2, 9, 4], [1, 2, 3, 4], [2**31, 5, 6, 7])
    assert tree.closest_child(ROOT, wanted) == expected


def test_closest_child_is_one_of_its_parent() -> None:
    tree = tree_of(5, 6)
    assert tree.closest_child(HASHES[0], TOKENS[:2]) == (None, 0)
    assert tree.closest_child(HASHES[0], TOKENS[2:4]) == (6, 2)


def test_page_that_is_not_full_is_found_by_its_tokens() -> None:
    tree = tree_of(5)
    tree.insert(cached(6, [2], HASHES[0]))
    assert tree.closest_child(HASHES[0], [2, 9]) == (6, 1)


def test_idle_part_is_superseded_by_the_whole() -> None:
    tree = tree_of(5)
    tree.insert(cached(6, [2], HASHES[0]))
    set_idle(tree, 6)
    assert tree.insert(cached(7, [2, 3], HASHES[0])) == 6
    tree.audit()
    assert list(tree.pages()) == [5, 7]


def test_part_that_is_read_is_not_superseded() -> None:
    tree = tree_of(5)
    tree.insert(cached(6, [2], HASHES[0]))
    assert tree.insert(cached(7, [2, 3], HASHES[0])) is None
    assert list(tree.pages()) == [5, 6, 7]


# What the watcher hears


class Recorder:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def page_stored(self, page: CachedPage, medium: Medium) -> None:
        self.heard.append(f"+{page.page}")

    def page_removed(self, page: CachedPage, medium: Medium) -> None:
        self.heard.append(f"-{page.page}")

    def all_removed(self) -> None:
        self.heard.append("none")


def test_watcher_hears_of_full_pages_in_order() -> None:
    recorder = Recorder()
    tree = PrefixTree(recorder)
    tree.insert(cached(5, TOKENS[:2]))
    tree.insert(cached(6, [2], HASHES[0]))
    tree.insert(cached(7, TOKENS[2:4], HASHES[0]))
    set_idle(tree, 5, 6, 7)
    evict_all(tree)
    assert recorder.heard == ["+5", "+7", "-7", "-5"]


def test_clearing_tells_at_once_if_nothing_is_left() -> None:
    recorder = Recorder()
    tree = PrefixTree(recorder)
    for page in range(3):
        tree.insert(cached(page, [page, page]))
    set_idle(tree, 0, 1)
    assert tree.clear_idle() == [0, 1]
    set_idle(tree, 2)
    assert tree.clear_idle() == [2]
    assert recorder.heard == ["+0", "+1", "+2", "-0", "-1", "none"]


# What the audit finds


def test_audit_finds_a_cheap_parent() -> None:
    tree = tree_of(5)
    tree.insert(cached(6, [2, 3], HASHES[0], priority=1))
    with pytest.raises(AssertionError, match="page 5 is cheaper than page 6"):
        tree.audit()


def test_audit_finds_a_page_without_its_parent() -> None:
    tree = PrefixTree()
    tree.insert(cached(6, [2, 3], HASHES[0]))
    with pytest.raises(AssertionError, match="page 6 hangs in the air"):
        tree.audit()


def test_audit_finds_a_page_after_one_that_is_not_full() -> None:
    tree = siblings([1])
    tree.insert(cached(6, [2, 3], child_hash(ROOT, [1])))
    with pytest.raises(AssertionError, match="which is not full"):
        tree.audit()
