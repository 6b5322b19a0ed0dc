"""Which pages each sequence has: taken as it grows, shared by prefix, given back when it ends."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvasir_protocol.ids import PageHash, PageIndex
from kvasir_protocol.page_hash import child_hash
from kvasir_workers.kv.in_flight import MIN_AWAITED_PAGES, InFlightPages
from kvasir_workers.kv.offload.tier_slots import StoredPage
from kvasir_workers.kv.offload.tiers import KvTiers
from kvasir_workers.kv.page_pool import PagePool, PageState
from kvasir_workers.kv.prefix_tree import CachedPage, PageWatcher, PrefixTree, token_bytes
from kvasir_workers.sequence import Sequence as TokenSequence

MIN_COPIED_TOKENS = 2
"""A newcomer copies no less, unless that is all that it could take over. The copy itself pays for a single token (7 us
against 800 us, demo model, CPU, one thread), but where all prompts begin with a fixed token, each newcomer would hold
a page for that one."""


@dataclass(frozen=True, slots=True)
class PageCopy:
    """The first num_tokens tokens of source are to be written into target, layer by layer, as they are."""

    source: PageIndex
    target: PageIndex
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """What of other sequences' work a newcomer takes over. enabled=False: no page outlives its sequence or is shared.

    min_copied_tokens: of a page that it shares in part (None: whole pages only); min_awaited_pages: that another one is
    computing.
    """

    enabled: bool = True
    min_copied_tokens: int | None = MIN_COPIED_TOKENS
    min_awaited_pages: int = MIN_AWAITED_PAGES


def pages_for(num_tokens: int, page_size: int) -> int:
    return -(-num_tokens // page_size)


def take_restores(sequences: Iterable[TokenSequence]) -> list[tuple[StoredPage, PageIndex]]:
    """What the next step has to restore before these sequences can go on: from then on that is the step's affair."""
    restores: list[tuple[StoredPage, PageIndex]] = []
    for sequence in sequences:
        if sequence.restored_from:
            pages = sequence.pages[sequence.num_published_pages :]
            restores += zip(sequence.restored_from, pages, strict=False)
            sequence.restored_from = []
    return restores


class KvManager:
    """Pool and prefix tree as one, and what lies below them. watcher is told what the tree holds."""

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        reuse: Reuse | None = None,
        watcher: PageWatcher | None = None,
        tiers: KvTiers | None = None,
    ) -> None:
        self.page_size = page_size
        self.pool = PagePool(num_pages)
        self.tree = PrefixTree(watcher)
        self._reuse = reuse or Reuse()
        self.tiers = tiers
        self.in_flight = InFlightPages()

    @property
    def num_available(self) -> int:
        """Pages that can be had now: free ones, and cached ones that nobody reads."""
        return self.pool.num_free + self.tree.num_idle

    @property
    def num_used(self) -> int:
        return self.pool.num_pages - self.num_available

    def attach_prefix(self, sequence: TokenSequence, *, can_copy: bool = True, can_restore: bool = False) -> None:
        """Give a sequence without pages the cached pages of its prefix; at least its last token stays to compute.

        can_copy: of the page in which it leaves all that is cached, it gets a copy (made by the next step).
        can_restore: pages that lie in host memory count as computed, and the next step restores them.
        """
        assert not sequence.held_pages, f"{sequence.request_id} has pages already"
        pages = self._whole_pages(sequence)
        for page in pages:
            self._read(page, sequence)
        sequence.pages = pages
        sequence.num_published_pages = len(pages)
        sequence.num_computed = len(pages) * self.page_size
        if can_restore and self.tiers is not None:
            sequence.restored_from = self.tiers.hold(self._names_after(sequence, len(pages)))
            sequence.num_computed += len(sequence.restored_from) * self.page_size
            # Nothing in the tree follows a page that is not there.
            can_copy = can_copy and not sequence.restored_from
        source, num_common = self._page_to_copy(sequence, len(pages)) if can_copy else (None, 0)
        if source is not None:
            self._read(source, sequence)
            sequence.copy_source, sequence.num_copied = source, num_common
            sequence.num_computed += num_common

    def _whole_pages(self, sequence: TokenSequence) -> list[PageIndex]:
        """The cached pages of a sequence's prefix, as far as cached pages may stand in for computing."""
        if not self._reuse.enabled:
            return []
        return self.tree.match(sequence.hashes_up_to(sequence.num_reusable, self.page_size))

    def _names_after(self, sequence: TokenSequence, num_pages: int) -> list[PageHash]:
        """Names of the pages that come after num_pages and that cached pages may stand in for."""
        return sequence.hashes_up_to(sequence.num_reusable, self.page_size)[num_pages:]

    def _page_to_copy(self, sequence: TokenSequence, num_whole: int) -> tuple[PageIndex | None, int]:
        """The cached page that shares most with what comes after num_whole pages, and how many tokens; or (None, 0)."""
        start = num_whole * self.page_size
        wanted = sequence.token_ids[start : min(start + self.page_size, sequence.num_reusable)]
        if not wanted or not self._reuse.enabled or self._reuse.min_copied_tokens is None:
            return None, 0
        source, num_common = self.tree.closest_child(sequence.hash_before(num_whole, self.page_size), wanted)
        is_worth_it = num_common >= min(self._reuse.min_copied_tokens, len(wanted))
        return (source, num_common) if is_worth_it else (None, 0)

    def _read(self, page: PageIndex, sequence: TokenSequence) -> None:
        self.pool.share(page)
        self.tree.set_used(page, sequence.request.cache_priority)

    def _release_copied(self, sequence: TokenSequence) -> None:
        if sequence.copy_source is not None:
            source, sequence.copy_source, sequence.num_copied = sequence.copy_source, None, 0
            self.release([source])

    def awaits_others(self, sequence: TokenSequence) -> bool:
        """A running sequence computes enough of what this one needs next, or the disk reads it: better to wait."""
        if sequence.awaited_page is not None and sequence.awaited_page in self.in_flight:
            return True
        sequence.awaited_page = None
        if self._reuse.enabled and self.in_flight.computers():
            missing = self._names_after(sequence, len(self._whole_pages(sequence)))
            # All choices but the first know that another one computes their whole prompt: n times is too much.
            min_pages = 1 if sequence.request.choice_index else self._reuse.min_awaited_pages
            sequence.awaited_page = self.in_flight.last_worth_awaiting(missing, min_pages)
        return sequence.awaited_page is not None or (self.tiers is not None and self._awaits_disk(sequence, self.tiers))

    def _awaits_disk(self, sequence: TokenSequence, tiers: KvTiers) -> bool:
        if sequence.disk_wait is None and tiers.disk is not None:
            sequence.disk_wait = tiers.fetch(self._names_after(sequence, len(self._whole_pages(sequence))))
        return sequence.disk_wait is not None and tiers.is_waiting(sequence.disk_wait)

    def announce(self, sequence: TokenSequence) -> None:
        """The sequence runs from now on: others may wait for its pages."""
        if self._reuse.enabled:
            names = sequence.hashes_up_to(sequence.num_tokens, self.page_size)
            names = names[sequence.num_published_pages :]
            self.in_flight.announce(sequence.request_id, names, num_next=len(sequence.restored_from))

    def num_cached_tokens(self, sequence: TokenSequence) -> int:
        """What attach_prefix would find now for a sequence without pages."""
        num_whole = len(self._whole_pages(sequence))
        _, num_copied = self._page_to_copy(sequence, num_whole)
        return num_whole * self.page_size + num_copied

    def num_missing(self, sequence: TokenSequence) -> int:
        """Pages that the sequence lacks for all its tokens."""
        return pages_for(sequence.num_tokens + sequence.num_coming, self.page_size) - len(sequence.pages)

    def try_grow(self, sequence: TokenSequence, num_tokens: int, *, fills_in_step: bool = True) -> bool:
        """Give the sequence pages for num_tokens tokens in all. False (and nothing changed) if there are too few.

        fills_in_step: only steps write into them. Else nothing can be saved of what they hold until then.
        """
        missing = pages_for(num_tokens, self.page_size) - len(sequence.pages)
        if missing <= 0:
            return True
        if missing > self.num_available:
            return False
        while self.pool.num_free < missing:
            evicted = self.tree.evict()
            self.pool.recycle(evicted.page)
            if self.tiers is not None and fills_in_step:
                self.tiers.save(evicted)
        pages = self.pool.take(missing, sequence.request_id)
        sequence.pages += pages
        if self.tiers is not None and not fills_in_step:
            self.tiers.cancel_saves(pages)
        return True

    def publish_computed(self, sequence: TokenSequence) -> None:
        """The step has run: make full pages READY and known; where the tree has the same content, use its page."""
        if sequence.copy_source is not None:
            self._release_copied(sequence)
        if sequence.replaced_pages:
            self._release_replaced(sequence)
        num_full = sequence.num_computed // self.page_size
        if num_full <= sequence.num_published_pages:
            return
        for index in range(sequence.num_published_pages, num_full):
            self.pool.publish(sequence.pages[index], sequence.request_id)
            if self._reuse.enabled:
                self._cache_page(sequence, index)
        sequence.num_published_pages = num_full

    def publish_last(self, sequence: TokenSequence) -> None:
        """Make READY even the last page, which is not full: the sequence will write no more."""
        self.publish_computed(sequence)
        for index in range(sequence.num_published_pages, pages_for(sequence.num_computed, self.page_size)):
            self.pool.publish(sequence.pages[index], sequence.request_id)
            if self._reuse.enabled:
                self._cache_part(sequence, index)
            sequence.num_published_pages = index + 1

    def _cache_page(self, sequence: TokenSequence, index: int) -> None:
        name = sequence.hashes_up_to(sequence.num_computed, self.page_size)[index]
        self.in_flight.finish(sequence.request_id, name)
        known = self.tree.find(name)
        if known is None:
            self._insert(sequence, index, sequence.token_ids[index * self.page_size : (index + 1) * self.page_size])
        else:
            self._adopt(sequence, index, known)

    def _cache_part(self, sequence: TokenSequence, index: int) -> None:
        """Keep a page that is not full, for copies, unless a known one holds as much."""
        token_ids = sequence.token_ids[index * self.page_size : sequence.num_computed]
        _, num_common = self.tree.closest_child(sequence.hash_before(index, self.page_size), token_ids)
        if self._reuse.min_copied_tokens is not None and num_common < len(token_ids):
            self._insert(sequence, index, token_ids)

    def _insert(self, sequence: TokenSequence, index: int, token_ids: list[int]) -> None:
        parent = sequence.hash_before(index, self.page_size)
        superseded = self.tree.insert(
            CachedPage(
                page=sequence.pages[index],
                name=child_hash(parent, token_ids),
                parent=parent,
                content=token_bytes(token_ids),
                is_full=len(token_ids) == self.page_size,
                salt=sequence.request.cache_salt if index == 0 else None,
                priority=sequence.request.cache_priority,
            )
        )
        if superseded is not None:
            self.pool.recycle(superseded)

    def _adopt(self, sequence: TokenSequence, index: int, known: PageIndex) -> None:
        """Replace the sequence's own copy by the page that the tree has; a step on its way still reads the former."""
        self._read(known, sequence)
        sequence.replace_page(index, known)
        if not sequence.num_in_flight:
            self._release_replaced(sequence)

    def _release_replaced(self, sequence: TokenSequence) -> None:
        pages, sequence.replaced_pages = sequence.replaced_pages, []
        self.release(pages)

    def detach(self, sequence: TokenSequence) -> None:
        """Take all pages from a sequence. What is complete stays cached while nobody needs the room."""
        if sequence.restored_from and self.tiers is not None:
            self.tiers.release(sequence.restored_from)
            sequence.restored_from = []
        self.in_flight.forget(sequence.request_id)
        assert not sequence.num_in_flight, f"{sequence.request_id} loses its pages in flight"
        self._release_copied(sequence)
        self._release_replaced(sequence)
        self.release(reversed(sequence.pages))
        sequence.drop_pages()

    def clear_cache(self) -> None:
        """Forget every page that nobody reads, and all that lies below."""
        if self.tiers is not None:
            self.tiers.clear()
        for page in self.tree.clear_idle():
            self.pool.recycle(page)

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
        self.tree.audit()
        if self.tiers is not None:
            self.tiers.audit()
        for cached in self.tree.snapshot():
            page = cached.page
            assert cached.is_read == (self.pool.references(page) > 0), f"cached page {page} miscounts its readers"
            assert self.pool.state(page) is PageState.READY, f"cached page {page} is {self.pool.state(page)}"


def num_held_alone(kv: KvManager, sequences: Iterable[TokenSequence]) -> int:
    """Pages that could be had if these sequences gave up theirs."""
    return sum(kv.pool.references(page) == 1 for sequence in sequences for page in sequence.held_pages)


def settle_copies(kv: KvManager, sequences: Iterable[TokenSequence]) -> tuple[PageCopy, ...]:
    """What the step of these sequences, which have all their pages, has to copy before it computes.

    A sequence that goes on where a page ends which is not full, and which nobody else reads, gets the page itself.
    """
    copies = []
    for sequence in sequences:
        if sequence.copy_source is not None and not _takes_over_source(kv, sequence, sequence.copy_source):
            target = sequence.pages[sequence.num_published_pages]
            copies.append(PageCopy(sequence.copy_source, target, sequence.num_copied))
    return tuple(copies)


def _takes_over_source(kv: KvManager, sequence: TokenSequence, source: PageIndex) -> bool:
    if kv.pool.references(source) > 1 or not kv.tree.forget_part(source, sequence.num_copied):
        return False
    index = sequence.num_published_pages
    kv.pool.reopen(source, sequence.request_id)
    sequence.replace_page(index, source)
    if kv.tiers is None:  # else the step may have to save what the page held, and nobody else may have it before
        kv.release([sequence.replaced_pages.pop()])
    sequence.copy_source, sequence.num_copied = None, 0
    return True
