"""What became of pages in the tiers: counted, and told to whoever watches the cache."""

from collections import Counter

from kvasir_protocol.kv_events import Medium
from kvasir_workers.kv.offload.tier_slots import StoredPage
from kvasir_workers.kv.prefix_tree import PageWatcher

COUNTS = (
    "host_saved_pages",
    "host_restored_pages",
    "host_dropped_pages",
    "disk_saved_pages",
    "disk_restored_pages",
    "disk_dropped_pages",
    "disk_corrupt_pages",
)
"""Fields of EngineCounters."""


class TierLog:
    """Totals since the start, and events."""

    def __init__(self, watcher: PageWatcher | None = None) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self._watcher = watcher

    def stored(self, page: StoredPage, medium: Medium) -> None:
        """A page became ready in a tier."""
        if self._watcher is not None:
            self._watcher.page_stored(page.identity, medium)

    def removed(self, page: StoredPage, medium: Medium) -> None:
        """A page is not found in a tier any more; nobody was told of one that never became ready."""
        if self._watcher is not None and page.is_ready:
            self._watcher.page_removed(page.identity, medium)
