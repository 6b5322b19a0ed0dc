"""Pages by the tokens that they hold and all tokens before: equal prefixes share them, near ones copy from them.

    root(salt) --- [a b c d] --- [e f g h] --- [i j]        full pages have children, a page with fewer tokens has none
                       +-------- [e f x y]                  (the last one of a sequence that ended)

A page's name holds its parent's, so that a prefix is found page by page. A page is *busy* while somebody reads it or a
page below it, and otherwise *idle*: idle pages wait in the eviction line, and nothing above an idle page's reader is
ever in it. Of two pages the child stands before its parent, since it became idle first and is never dearer.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvasir_protocol.ids import PageHash, PageIndex
from kvasir_protocol.kv_events import MEDIUM_GPU, Medium
from kvasir_workers.kv.eviction_line import EvictionLine


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Token ids as 32-bit words; equal beginnings are equal bytes."""
    return array("I", token_ids).tobytes()


_TOKEN_BYTES = array("I").itemsize


@dataclass(slots=True, eq=False)
class CachedPage:
    """A READY page in the tree. content, name, parent, is_full and salt never change.

    parent: the page before, or the root of the salt. salt: of a first page's request, None further down.
    """

    page: PageIndex
    name: PageHash
    parent: PageHash
    content: bytes
    is_full: bool
    salt: str | None
    priority: int = 0
    is_read: bool = True
    num_busy_children: int = 0

    @property
    def is_busy(self) -> bool:
        return self.is_read or self.num_busy_children > 0

    @property
    def token_ids(self) -> list[int]:
        words = array("I")
        words.frombytes(self.content)
        return words.tolist()

    def num_common(self, content: bytes) -> int:
        """How many leading tokens are the same."""
        for start in range(0, min(len(content), len(self.content)), _TOKEN_BYTES):
            if self.content[start : start + _TOKEN_BYTES] != content[start : start + _TOKEN_BYTES]:
                return start // _TOKEN_BYTES
        return min(len(content), len(self.content)) // _TOKEN_BYTES


class PageWatcher(Protocol):
    """Is told what the tree and the tiers below it hold, full pages only. Called by the engine's thread, so it must
    not wait."""

    def page_stored(self, page: CachedPage, medium: Medium) -> None: ...

    def page_removed(self, page: CachedPage, medium: Medium) -> None: ...

    def all_removed(self) -> None: ...


class PrefixTree:
    """Which READY page holds which content. It keeps no reference counts: the pool does."""

    def __init__(self, watcher: PageWatcher | None = None) -> None:
        self._watcher = watcher
        self._by_name: dict[PageHash, CachedPage] = {}
        self._by_page: dict[PageIndex, CachedPage] = {}
        # Sorted by content, so that the pages with most tokens in common are neighbours.
        self._children: dict[PageHash, list[CachedPage]] = {}
        self._idle: EvictionLine[CachedPage] = EvictionLine()

    def __contains__(self, page: PageIndex) -> bool:
        return page in self._by_page

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def find(self, name: PageHash) -> PageIndex | None:
        cached = self._by_name.get(name)
        return cached.page if cached is not None else None

    def match(self, names: Sequence[PageHash]) -> list[PageIndex]:
        """The cached pages of the longest known prefix of names."""
        pages = []
        for name in names:
            cached = self._by_name.get(name)
            if cached is None:
                break
            pages.append(cached.page)
        return pages

    def closest_child(self, parent: PageHash, token_ids: Sequence[int]) -> tuple[PageIndex | None, int]:
        """The page after parent that begins with most of token_ids, and with how many; (None, 0) if none does."""
        content = token_bytes(token_ids)
        children = self._children.get(parent, [])
        place = bisect_left(children, content, key=_content)
        page, most = None, 0
        for child in children[max(0, place - 1) : place + 1]:
            if child.num_common(content) > most:
                page, most = child.page, child.num_common(content)
        return page, most

    def insert(self, cached: CachedPage) -> PageIndex | None:
        """Remember a READY page that somebody reads; its parent is known.

        A page that is not full and whose tokens all stand in the new one is forgotten if nobody reads it:
        the caller recycles what is returned.
        """
        known = self._by_name.get(cached.name)
        assert known is None, f"page {cached.page} duplicates page {known and known.page}"
        assert cached.page not in self._by_page, f"page {cached.page} is cached twice"
        siblings = self._children.setdefault(cached.parent, [])
        place = bisect_left(siblings, cached.content, key=_content)
        siblings.insert(place, cached)
        self._by_name[cached.name] = self._by_page[cached.page] = cached
        self._count_busy_child(cached.parent, 1)
        if self._watcher is not None and cached.is_full:
            self._watcher.page_stored(cached, MEDIUM_GPU)
        return self._remove_superseded(siblings[place - 1] if place else None, cached)

    def _remove_superseded(self, before: CachedPage | None, cached: CachedPage) -> PageIndex | None:
        if before is None or before.is_full or before.is_busy or not cached.content.startswith(before.content):
            return None
        self._remove(before)
        return before.page

    def set_used(self, page: PageIndex, priority: int = 0) -> None:
        """Somebody reads the page (and all before it), and wants it kept with this priority from now on."""
        cached = self._by_page[page]
        was_busy = cached.is_busy
        if not was_busy:
            self._idle.remove(cached)
        cached.is_read = True
        cached.priority = max(cached.priority, priority)
        if not was_busy:
            self._count_busy_child(cached.parent, 1)

    def set_idle(self, page: PageIndex) -> None:
        """Nobody reads the page any more: it may be evicted when nobody reads a page below it either."""
        assert page in self._by_page, f"page {page} is not cached"
        cached = self._by_page[page]
        if not cached.is_read:
            return
        cached.is_read = False
        if not cached.is_busy:
            self._idle.append(cached)
            self._count_busy_child(cached.parent, -1)

    def _count_busy_child(self, name: PageHash, change: int) -> None:
        """A page below became busy or idle, and with it perhaps the pages above."""
        parent = self._by_name.get(name)
        while parent is not None:
            was_busy = parent.is_busy
            if not was_busy:
                self._idle.remove(parent)
            parent.num_busy_children += change
            if parent.is_busy == was_busy:
                return
            if not parent.is_busy:
                self._idle.append(parent)
            parent = self._by_name.get(parent.parent)

    def evict(self) -> CachedPage:
        """Forget the idle page that is needed least; the caller recycles it."""
        cached = self._idle.first()
        self._remove(cached)
        return cached

    def forget_part(self, page: PageIndex, num_tokens: int) -> bool:
        """Forget a page that its one reader will write again, from num_tokens on.

        False (and nothing changed) if it is full or does not end there.
        """
        cached = self._by_page[page]
        if cached.is_full or len(cached.content) != num_tokens * _TOKEN_BYTES:
            return False
        self.set_idle(page)
        self._remove(cached)
        return True

    def clear_idle(self) -> list[PageIndex]:
        """Forget all idle pages; the caller recycles them."""
        watcher, pages = self._watcher, [cached.page for cached in self._idle]
        is_all = len(pages) == len(self._by_page)
        self._watcher = None if is_all else watcher
        for page in pages:
            self._remove(self._by_page[page])
        self._watcher = watcher
        if watcher is not None and is_all and pages:
            watcher.all_removed()
        return pages

    def _remove(self, cached: CachedPage) -> None:
        assert cached.name not in self._children, f"page {cached.page} is evicted before the pages after it"
        self._idle.remove(cached)
        del self._by_name[cached.name], self._by_page[cached.page]
        siblings = self._children[cached.parent]
        del siblings[bisect_left(siblings, cached.content, key=_content)]
        if not siblings:
            del self._children[cached.parent]
        if self._watcher is not None and cached.is_full:
            self._watcher.page_removed(cached, MEDIUM_GPU)

    def pages(self) -> Iterator[PageIndex]:
        return iter(self._by_page)

    def snapshot(self) -> list[CachedPage]:
        """All pages; parents come before their children."""
        return list(self._by_page.values())

    def audit(self) -> None:
        """Check the tree against itself. Raises AssertionError."""
        busy_children: dict[PageHash, int] = {}
        places = {cached.page: place for place, cached in enumerate(self._idle)}
        assert len(places) == len(self._idle), "the line's length is off"
        for cached in self._by_page.values():
            parent = self._by_name.get(cached.parent)
            assert (parent is None) == (cached.salt is not None), f"page {cached.page} hangs in the air"
            assert cached.is_busy == (cached.page not in places), f"page {cached.page} is in the wrong line"
            busy_children[cached.parent] = busy_children.get(cached.parent, 0) + cached.is_busy
            if parent is None:
                continue
            assert parent.is_full, f"page {cached.page} follows page {parent.page}, which is not full"
            assert parent.priority >= cached.priority, f"page {parent.page} is cheaper than page {cached.page} after it"
            if parent.page in places:
                assert places[cached.page] < places[parent.page], f"page {parent.page} would go before {cached.page}"
        for cached in self._by_page.values():
            assert cached.num_busy_children == busy_children.get(cached.name, 0), f"page {cached.page} miscounts"
        for name, siblings in self._children.items():
            contents = [cached.content for cached in siblings]
            assert contents == sorted(set(contents)), f"the pages after {name.hex()} are out of order"
        assert sum(map(len, self._children.values())) == len(self._by_page) == len(self._by_name), "lost children"


def _content(cached: CachedPage) -> bytes:
    return cached.content
