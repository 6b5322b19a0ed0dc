"""Which pages each sequence has: taken as it grows, shared by prefix, given back when it ends."""

from collections.abc import Iterable, Sequence

from kvasir_protocol.ids import PageIndex
from kvasir_workers.kv.page_pool import PagePool, PageState
from kvasir_workers.kv.prefix_tree import PrefixTree
from kvasir_workers.sequence import Sequence as TokenSequence


def pages_for(num_tokens: int, page_size: int) -> int:
    return -(-num_tokens // page_size)


class KvManager:
    """Pool and prefix tree as one. enable_prefix_caching=False: no page outlives its sequence or is shared."""

    def __init__(self, num_pages: int, page_size: int, *, enable_prefix_caching: bool = True) -> None:
        self.page_size = page_size
        self.pool = PagePool(num_pages)
        self.tree = PrefixTree()
        self._caches = enable_prefix_caching

    @property
    def num_available(self) -> int:
        """Pages that can be had now: free ones, and cached ones that nobody reads."""
        return self.pool.num_free + self.tree.num_idle

    @property
    def num_used(self) -> int:
        return self.pool.num_pages - self.num_available

    def attach_prefix(self, sequence: TokenSequence) -> None:
        """Give a sequence without pages the cached pages of its prefix; at least its last token stays to compute."""
        assert not sequence.pages, f"{sequence.request_id} has pages already"
        pages: list[PageIndex] = []
        if self._caches:
            pages = self.tree.match(sequence.hashes_up_to(sequence.num_reusable, self.page_size))
        for page in pages:
            self.pool.share(page)
            self.tree.set_used(page)
        sequence.pages = pages
        sequence.num_published_pages = len(pages)
        sequence.num_computed = len(pages) * self.page_size

    def num_cached_tokens(self, sequence: TokenSequence) -> int:
        """What attach_prefix would find now for a sequence without pages."""
        if not self._caches:
            return 0
        hashes = sequence.hashes_up_to(sequence.num_tokens - 1, self.page_size)
        return len(self.tree.match(hashes)) * self.page_size

    def num_missing(self, sequence: TokenSequence) -> int:
        """Pages that the sequence lacks for all its tokens."""
        return pages_for(sequence.num_tokens, self.page_size) - len(sequence.pages)

    def try_grow(self, sequence: TokenSequence, num_tokens: int) -> bool:
        """Give the sequence pages for num_tokens tokens in all. False (and nothing changed) if there are too few."""
        missing = pages_for(num_tokens, self.page_size) - len(sequence.pages)
        if missing > self.num_available:
            return False
        while self.pool.num_free < missing:
            self.pool.recycle(self.tree.evict())
        if missing > 0:
            sequence.pages += self.pool.take(missing, sequence.request_id)
        return True

    def publish_computed(self, sequence: TokenSequence) -> None:
        """Make the sequence's full pages READY and known; where the tree has the same content, use its page."""
        num_full = sequence.num_computed // self.page_size
        for index in range(sequence.num_published_pages, num_full):
            self.pool.publish(sequence.pages[index], sequence.request_id)
            if self._caches:
                self._cache_page(sequence, index)
        sequence.num_published_pages = max(sequence.num_published_pages, num_full)

    def publish_last(self, sequence: TokenSequence) -> None:
        """Make READY even the last page, which is not full: the sequence will write no more. It stays unknown."""
        self.publish_computed(sequence)
        for index in range(sequence.num_published_pages, len(sequence.pages)):
            self.pool.publish(sequence.pages[index], sequence.request_id)
        sequence.num_published_pages = len(sequence.pages)

    def _cache_page(self, sequence: TokenSequence, index: int) -> None:
        page_hash = sequence.hashes_up_to(sequence.num_computed, self.page_size)[index]
        known = self.tree.find(page_hash)
        if known is None:
            self.tree.insert(page_hash, sequence.pages[index])
        else:
            self._adopt(sequence, index, known)

    def _adopt(self, sequence: TokenSequence, index: int, known: PageIndex) -> None:
        """Replace the sequence's own copy by the page that the tree has."""
        self.pool.share(known)
        self.tree.set_used(known)
        self.release([sequence.pages[index]])
        sequence.pages[index] = known

    def detach(self, sequence: TokenSequence) -> None:
        """Take all pages from a sequence. What is complete stays cached while nobody needs the room."""
        self.release(reversed(sequence.pages))
        sequence.pages = []
        sequence.num_published_pages = 0
        sequence.num_computed = 0

    def pin(self, pages: Sequence[PageIndex]) -> None:
        """Keep READY pages alive beyond their sequence (`release` them later)."""
        for page in pages:
            self.pool.share(page)

    def release(self, pages: Iterable[PageIndex]) -> None:
        for page in pages:
            if not self.pool.release(page):
                continue
            if page in self.tree:
                self.tree.set_idle(page)
            else:
                self.pool.recycle(page)

    def audit(self, held: Iterable[PageIndex]) -> None:
        """Check pool and tree against all holders (a page once per holder). Raises AssertionError."""
        self.pool.audit(held, self.tree.pages())
        for page in self.tree.idle_pages():
            assert self.pool.references(page) == 0, f"idle page {page} has readers"
        for page in self.tree.pages():
            assert self.pool.state(page) is PageState.READY, f"cached page {page} is {self.pool.state(page)}"
