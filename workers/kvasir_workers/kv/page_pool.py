"""Fixed-size KV pages: which are free, which are being filled and by whom, which may be shared.

            take(owner)              publish(owner)
    FREE ---------------> FILLING ------------------> READY  (immutable; shared by reference count)
      ^                      | <---- reopen(owner) ---- |    (the only reader writes on where the page ends)
      +---- release, last reference gone (`recycle`) ---+

Only the owner may write into a FILLING page, and only READY pages may be read by others.
"""

from collections import deque
from collections.abc import Iterable
from enum import Enum

from kvasir_protocol.ids import PageIndex


class PageState(Enum):
    FREE = "free"
    FILLING = "filling"
    READY = "ready"


class PagePool:
    """The states, owners and reference counts of num_pages pages; it holds no content."""

    def __init__(self, num_pages: int) -> None:
        assert num_pages > 0, f"a pool needs pages, got {num_pages}"
        self.num_pages = num_pages
        self._state = [PageState.FREE] * num_pages
        self._owner: list[str | None] = [None] * num_pages
        self._references = [0] * num_pages
        self._free = deque(PageIndex(i) for i in range(num_pages))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def state(self, page: PageIndex) -> PageState:
        return self._state[page]

    def references(self, page: PageIndex) -> int:
        return self._references[page]

    def take(self, count: int, owner: str) -> list[PageIndex]:
        """Hand count free pages to owner, to be filled. The caller has checked num_free."""
        assert count <= len(self._free), f"{owner} takes {count} pages, {len(self._free)} are free"
        pages = [self._free.popleft() for _ in range(count)]
        for page in pages:
            self._state[page], self._owner[page], self._references[page] = PageState.FILLING, owner, 1
        return pages

    def publish(self, page: PageIndex, owner: str) -> None:
        """The owner has written all it will ever write: from now on the page is immutable and may be shared."""
        assert self._state[page] is PageState.FILLING, f"page {page} published while {self._state[page]}"
        assert self._owner[page] == owner, f"page {page} of {self._owner[page]} published by {owner}"
        self._state[page], self._owner[page] = PageState.READY, None

    def reopen(self, page: PageIndex, owner: str) -> None:
        """The only reader of a READY page becomes its owner; nobody can find the page any more."""
        assert self._state[page] is PageState.READY, f"page {page} reopened while {self._state[page]}"
        assert self._references[page] == 1, f"page {page} reopened with {self._references[page]} references"
        self._state[page], self._owner[page] = PageState.FILLING, owner

    def share(self, page: PageIndex) -> None:
        """One more reader of a READY page; also wakes a cached page that nobody reads."""
        assert self._state[page] is PageState.READY, f"page {page} shared while {self._state[page]}"
        self._references[page] += 1

    def release(self, page: PageIndex) -> bool:
        """One reader or the owner lets go. True if nobody holds the page now: recycle it or keep it cached."""
        assert self._references[page] > 0, f"page {page} released more often than held"
        self._references[page] -= 1
        return self._references[page] == 0

    def recycle(self, page: PageIndex) -> None:
        """A page that nobody holds becomes FREE."""
        assert self._references[page] == 0, f"page {page} recycled with {self._references[page]} references"
        assert self._state[page] is not PageState.FREE, f"page {page} recycled twice"
        self._state[page], self._owner[page] = PageState.FREE, None
        self._free.append(page)

    def audit(self, held: Iterable[PageIndex], cached: Iterable[PageIndex]) -> None:
        """Check every page against those who say that they hold it. held lists a page once per holder."""
        counts = [0] * self.num_pages
        for page in held:
            counts[page] += 1
        assert counts == self._references, f"leaked or lost pages: {self._differences(counts)}"
        in_cache = set(cached)
        for index, state in enumerate(self._state):
            page = PageIndex(index)
            match state:
                case PageState.FREE:
                    assert counts[page] == 0 and page not in in_cache, f"free page {page} is held or cached"
                case PageState.FILLING:
                    assert counts[page] == 1 and page not in in_cache, f"page {page} is shared before it is full"
                    assert self._owner[page] is not None, f"page {page} is filled by nobody"
                case PageState.READY:
                    assert counts[page] > 0 or page in in_cache, f"page {page} is held by nobody and not free"
        assert len(set(self._free)) == len(self._free) == self._state.count(PageState.FREE), "free list is off"

    def _differences(self, counts: list[int]) -> dict[int, tuple[int, int]]:
        pairs = enumerate(zip(counts, self._references, strict=True))
        return {page: pair for page, pair in pairs if pair[0] != pair[1]}
