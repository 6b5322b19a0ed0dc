"""Who goes first."""

from kvasir_workers.kv.eviction_line import EvictionLine
from kvasir_workers.kv.prefix_tree import CachedPage
from tests.unit.workers.kv.offload.pages import evicted


def line_of(*pages: CachedPage) -> EvictionLine[CachedPage]:
    line: EvictionLine[CachedPage] = EvictionLine()
    for page in pages:
        line.append(page)
    return line


def test_lowest_priority_goes_first_and_then_the_oldest() -> None:
    dear, old, young = evicted(1, priority=1), evicted(2), evicted(3)
    line = line_of(dear, old, young)
    assert (list(line), line.first(), len(line)) == ([old, young, dear], old, 3)


def test_page_that_leaves_the_line_is_not_in_it() -> None:
    first, second = evicted(1), evicted(2, priority=1)
    line = line_of(first, second)
    line.remove(first)
    assert (list(line), line.first(), len(line)) == ([second], second, 1)
