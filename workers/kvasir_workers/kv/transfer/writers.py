"""How pages get to another replica: into its memory, or as bytes that are sent there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import HandoverTicket, PageSegment
from kvasir_workers.kv.page_memory import SHARED_MEMORY, SharedSegment
from kvasir_workers.kv.transfer.page_content import first_pages, layout_dtype, layout_page_bytes
from kvasir_workers.kv.transfer.page_parts import PartedPages, transfers_between
from kvasir_workers.kv.transfer.pieces import Contents, Pieces, with_room

SENT_CHUNK_BYTES = 8 * 2**20
"""Sent at a time from where pages lie: some milliseconds, so that pushes take turns."""

PACKED_CHUNK_BYTES = 2**20
"""Brought together at a time where pages can't be sent from where they lie: small enough to stay in a cache."""

COPIED_CHUNK_BYTES = 16 * 2**20
"""Copied at a time: some milliseconds, so that a word to stop gets in between; a message for each costs 0.1."""

TransportLabel = Literal["shared_memory", "process_group", "tcp"]


class ContentWriter:
    """Page contents to be sent."""

    def __init__(self, pages: PartedPages, label: Literal["process_group", "tcp"]) -> None:
        self.label: TransportLabel = label
        self._pages = pages
        self._packed = bytearray()
        is_sent_straight = label == "tcp" and bool(pages.places(first_pages(1)))
        self.chunk_bytes = SENT_CHUNK_BYTES if is_sent_straight else PACKED_CHUNK_BYTES

    def places(self, source: Sequence[PageIndex]) -> list[memoryview]:
        """What our pages `source` hold, where they lie if that can be; until the next call."""
        return self._pages.places(source) or [self.packed(source)]

    def contents(self, source: Sequence[PageIndex]) -> Contents:
        """The same, to be gone through."""
        return self._pages.contents(source) or Pieces([self.packed(source)])

    def packed(self, source: Sequence[PageIndex]) -> memoryview:
        """The same in one piece, in other memory than theirs; until the next call."""
        self._packed = with_room(self._packed, len(source) * layout_page_bytes(self._pages.layout))
        return self._pages.pack(source, self._packed)


class SharedMemoryWriter:
    """Straight into the other replica's pages on the same host."""

    label: TransportLabel = "shared_memory"
    chunk_bytes: int = COPIED_CHUNK_BYTES

    def __init__(self, pages: PartedPages, target: PartedPages) -> None:
        self._pages = pages
        self._target = target

    def write(self, source: Sequence[PageIndex], target: Sequence[PageIndex]) -> None:
        """Our pages `source` to the other side's `target`."""
        self._pages.copy_to(self._target, source, target)


PageWriter = ContentWriter | SharedMemoryWriter
"""Brings pages to one reservation, chunk_bytes at a time, so many that it is worth a message."""


class WriterFactory:
    """Chooses a writer for a ticket; remembers the segments of living replicas."""

    def __init__(self, pages: PartedPages, *, allow_shared_memory: bool, uses_process_groups: bool = False) -> None:
        self._pages = pages
        self._uses_process_groups = uses_process_groups
        self._allow_shared_memory = allow_shared_memory
        self._segments: dict[PageSegment, SharedSegment] = {}

    @property
    def device(self) -> torch.device:
        return self._pages.device

    def writer_for(self, ticket: HandoverTicket) -> PageWriter:
        if self._uses_process_groups:
            return ContentWriter(self._pages, "process_group")
        target = self._target(ticket) if self._allow_shared_memory and ticket.segments else None
        if target is not None and max(ticket.page_indices, default=0) < target.num_pages:
            return SharedMemoryWriter(self._pages, target)
        return ContentWriter(self._pages, "tcp")

    def _target(self, ticket: HandoverTicket) -> PartedPages | None:
        """The other side's pages, or None if a part can't be had: it is on another host, or of another layout."""
        cuts = [segment.cut for segment in ticket.segments]
        try:
            transfers_between(self._pages.cuts, cuts)
            memories = [self._segment(segment).tensor for segment in ticket.segments]
        except (OSError, ValueError):
            return None  # the handshake will tell
        return PartedPages(self._pages.layout, cuts, memories)

    def _segment(self, wanted: PageSegment) -> SharedSegment:
        for known in [known for known in self._segments if not (SHARED_MEMORY / known.name).exists()]:
            del self._segments[known]
        if wanted not in self._segments:
            self._segments[wanted] = self._attach(wanted)
        return self._segments[wanted]

    def _attach(self, wanted: PageSegment) -> SharedSegment:
        layout, cut = self._pages.layout, wanted.cut
        part = replace(layout, num_layers=cut.num_layers, num_kv_heads=len(cut.kv_heads))
        num_bytes = (SHARED_MEMORY / Path(wanted.name).name).stat().st_size
        num_pages, rest = divmod(num_bytes, max(1, layout_page_bytes(part)))
        if rest:
            raise ValueError(f"segment {wanted.name} is not made of pages of this layout")
        shape = (part.num_layers, 2, num_pages, part.page_size, part.num_kv_heads, part.head_dim)
        return SharedSegment.attach(wanted.name, shape, layout_dtype(part))
