"""Which page holds which content, and which goes first."""

import pytest

from kvasir_protocol.ids import PageHash, PageIndex
from kvasir_protocol.page_hash import page_hashes
from kvasir_workers.kv.prefix_tree import PrefixTree

HASHES = page_hashes(list(range(8)), 2)


def tree_of(*pages: int) -> PrefixTree:
    """Pages with the names of the first chain, all in use."""
    tree = PrefixTree()
    for page_hash, page in zip(HASHES, pages, strict=False):
        tree.insert(page_hash, PageIndex(page))
    return tree


def test_match_is_the_longest_known_prefix() -> None:
    tree = tree_of(5, 6)
    assert tree.match(HASHES) == [5, 6]


def test_match_stops_at_the_first_gap() -> None:
    tree = tree_of(5, 6, 7)
    for page in (6, 5, 7):
        tree.set_idle(PageIndex(page))
    tree.evict()
    assert tree.match(HASHES) == [5]


def test_page_that_idles_longest_is_evicted_first() -> None:
    tree = tree_of(5, 6, 7)
    for page in (6, 7, 5):
        tree.set_idle(PageIndex(page))
    assert [tree.evict() for _ in range(3)] == [6, 7, 5]


def test_used_page_is_not_evicted() -> None:
    tree = tree_of(5, 6)
    for page in (5, 6):
        tree.set_idle(PageIndex(page))
    tree.set_used(PageIndex(5))
    assert (tree.evict(), tree.num_idle) == (6, 0)


def test_page_that_was_used_again_goes_to_the_end_of_the_line() -> None:
    tree = tree_of(5, 6)
    for page in (5, 6):
        tree.set_idle(PageIndex(page))
    tree.set_used(PageIndex(5))
    tree.set_idle(PageIndex(5))
    assert tree.evict() == 6


def test_evicted_page_is_forgotten() -> None:
    tree = tree_of(5)
    tree.set_idle(PageIndex(5))
    tree.evict()
    assert (tree.find(HASHES[0]), PageIndex(5) in tree, list(tree.pages())) == (None, False, [])


def test_content_is_cached_once() -> None:
    with pytest.raises(AssertionError, match="page 9 duplicates page 5"):
        tree_of(5).insert(HASHES[0], PageIndex(9))


def test_page_has_one_content() -> None:
    with pytest.raises(AssertionError, match="page 5 is cached twice"):
        tree_of(5).insert(PageHash(b"other"), PageIndex(5))


def test_unknown_page_cannot_idle() -> None:
    with pytest.raises(AssertionError, match="not cached"):
        PrefixTree().set_idle(PageIndex(1))
