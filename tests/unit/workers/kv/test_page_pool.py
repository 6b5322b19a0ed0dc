"""Pages change hands only in the ways that the drawing shows."""

import pytest

from kvasir_protocol.ids import PageIndex
from kvasir_workers.kv.page_pool import PagePool, PageState


def test_taken_page_is_filling_and_its_owners() -> None:
    pool = PagePool(2)
    (page,) = pool.take(1, "a")
    assert (pool.state(page), pool.references(page), pool.num_free) == (PageState.FILLING, 1, 1)


def test_released_page_is_free_again_after_recycling() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1, "a")
    assert pool.release(page)
    pool.recycle(page)
    assert (pool.state(page), pool.num_free) == (PageState.FREE, 1)


def test_page_freed_first_is_taken_first() -> None:
    pool = PagePool(3)
    pages = pool.take(3, "a")
    for page in (pages[1], pages[0], pages[2]):
        pool.release(page)
        pool.recycle(page)
    assert pool.take(3, "b") == [pages[1], pages[0], pages[2]]


def test_filling_page_is_not_shared() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1, "a")
    with pytest.raises(AssertionError, match="shared while"):
        pool.share(page)


def test_only_the_owner_publishes() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1, "a")
    with pytest.raises(AssertionError, match="page 0 of a published by b"):
        pool.publish(page, "b")


def test_page_is_published_once() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1, "a")
    pool.publish(page, "a")
    with pytest.raises(AssertionError, match="published while"):
        pool.publish(page, "a")


def test_shared_page_is_free_after_the_last_reader() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1, "a")
    pool.publish(page, "a")
    pool.share(page)
    assert [pool.release(page), pool.release(page)] == [False, True]


def test_only_reader_may_write_on() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1, "a")
    pool.publish(page, "a")
    pool.reopen(page, "b")
    assert pool.state(page) is PageState.FILLING
    pool.publish(page, "b")


def test_page_with_two_readers_is_not_reopened() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1, "a")
    pool.publish(page, "a")
    pool.share(page)
    with pytest.raises(AssertionError, match="2 references"):
        pool.reopen(page, "b")


def test_page_is_not_released_more_often_than_held() -> None:
    pool = PagePool(1)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(PageIndex(0))


def test_held_page_is_not_recycled() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1, "a")
    with pytest.raises(AssertionError, match="recycled with 1 references"):
        pool.recycle(page)


def test_free_page_is_not_recycled() -> None:
    with pytest.raises(AssertionError, match="recycled twice"):
        PagePool(1).recycle(PageIndex(0))


def test_more_than_is_free_cannot_be_taken() -> None:
    with pytest.raises(AssertionError, match="takes 2 pages, 1 are free"):
        PagePool(1).take(2, "a")


def test_pool_without_pages_is_refused() -> None:
    with pytest.raises(AssertionError, match="a pool needs pages"):
        PagePool(0)


def test_audit_finds_a_leaked_page() -> None:
    pool = PagePool(2)
    pool.take(1, "a")
    with pytest.raises(AssertionError, match=r"leaked or lost pages: \{0: \(0, 1\)\}"):
        pool.audit(held=[], cached=[])


def test_audit_finds_a_page_cached_before_it_is_full() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1, "a")
    with pytest.raises(AssertionError, match="shared before it is full"):
        pool.audit(held=[page], cached=[page])


def test_audit_finds_a_ready_page_that_nobody_knows() -> None:
    pool = PagePool(1)
    (page,) = pool.take(1, "a")
    pool.publish(page, "a")
    pool.release(page)
    with pytest.raises(AssertionError, match="held by nobody and not free"):
        pool.audit(held=[], cached=[])


def test_audit_finds_a_free_page_in_the_cache() -> None:
    with pytest.raises(AssertionError, match="free page 0 is held or cached"):
        PagePool(1).audit(held=[], cached=[PageIndex(0)])
