"""Pages that leave for another replica."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from kvasir_protocol.ids import PageIndex
from kvasir_workers.kv.manager import KvManager
from kvasir_workers.sequence import Sequence as TokenSequence


class PageExporter(Protocol):
    """Takes pages that may leave for another replica: pinned until they come back through Engine.release_exported."""

    def export(self, sequence: TokenSequence, first_page: int, pages: Sequence[PageIndex]) -> None:
        """Send these READY pages, the sequence's pages from first_page on, if it is known where to."""
        ...

    def finish(self, sequence: TokenSequence, emitted_token_ids: tuple[int, ...]) -> None:
        """All pages were exported: once they are sent, the other replica may go on after emitted_token_ids."""
        ...

    def cancel(self, sequence: TokenSequence) -> None:
        """The sequence ended here: nothing more will come."""
        ...


class PageExports:
    """What of sequences that leave was offered, and which pages stay pinned for that. None as exporter: nothing."""

    def __init__(self, kv: KvManager, exporter: PageExporter | None) -> None:
        self._kv = kv
        self._exporter = exporter
        self._pinned: Counter[PageIndex] = Counter()

    def offer(self, sequence: TokenSequence) -> None:
        """Export the pages that became READY since the last time."""
        first = sequence.num_exported_pages
        pages = sequence.pages[first : sequence.num_published_pages]
        if not pages or self._exporter is None:
            return
        self._kv.pin(pages)
        self._pinned.update(pages)
        sequence.num_exported_pages += len(pages)
        self._exporter.export(sequence, first, pages)

    def finish(self, sequence: TokenSequence) -> None:
        """The prompt is computed and the first token said: the other replica goes on."""
        assert self._exporter is not None, f"{sequence.request_id} is to leave, but nothing exports pages"
        self._kv.publish_last(sequence)
        self.offer(sequence)
        self._exporter.finish(sequence, (sequence.token_ids[-1],))

    def cancel(self, sequence: TokenSequence) -> None:
        """It ended here; nothing happens if it was to stay anyway."""
        if sequence.is_prefill_only and self._exporter is not None:
            self._exporter.cancel(sequence)

    def release(self, pages: Sequence[PageIndex]) -> None:
        """The exporter is done with these pages."""
        self._pinned.subtract(pages)
        self._kv.release(reversed(pages))

    def pinned(self) -> Iterable[PageIndex]:
        """Each page once for each time that it is pinned."""
        return self._pinned.elements()
