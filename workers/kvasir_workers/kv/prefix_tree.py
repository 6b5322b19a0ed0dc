"""Full pages by the hash of all tokens up to their end, so that equal prefixes share them.

The chain of hashes is the tree: a page's name holds its parent's. Idle pages (cached, read by nobody) wait in
least-recently-used order; a sequence lets go of its last page first, so that leaves go before their parents.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from kvasir_protocol.ids import PageHash, PageIndex


class PrefixTree:
    """Which READY page holds which content. It keeps no reference counts: the pool does."""

    def __init__(self) -> None:
        self._page_of: dict[PageHash, PageIndex] = {}
        self._hash_of: dict[PageIndex, PageHash] = {}
        self._idle: OrderedDict[PageIndex, None] = OrderedDict()

    def __contains__(self, page: PageIndex) -> bool:
        return page in self._hash_of

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def find(self, page_hash: PageHash) -> PageIndex | None:
        return self._page_of.get(page_hash)

    def match(self, hashes: Sequence[PageHash]) -> list[PageIndex]:
        """The cached pages of the longest known prefix of hashes."""
        pages = []
        for page_hash in hashes:
            page = self._page_of.get(page_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    def insert(self, page_hash: PageHash, page: PageIndex) -> None:
        """Remember a READY page that somebody reads."""
        assert page_hash not in self._page_of, f"page {page} duplicates page {self._page_of[page_hash]}"
        assert page not in self._hash_of, f"page {page} is cached twice"
        self._page_of[page_hash] = page
        self._hash_of[page] = page_hash

    def set_idle(self, page: PageIndex) -> None:
        """Nobody reads the page any more: it may be evicted, after all that became idle before it."""
        assert page in self._hash_of, f"page {page} is not cached"
        self._idle[page] = None

    def set_used(self, page: PageIndex) -> None:
        self._idle.pop(page, None)

    def evict(self) -> PageIndex:
        """Forget the page that has been idle for longest; the caller recycles it."""
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._hash_of.pop(page)]
        return page

    def pages(self) -> Iterator[PageIndex]:
        return iter(self._hash_of)

    def idle_pages(self) -> Iterator[PageIndex]:
        return iter(self._idle)
