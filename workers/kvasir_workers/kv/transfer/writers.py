"""How pages get to another replica: into its memory, or as bytes that are sent there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import HandoverTicket, PageLayout
from kvasir_workers.kv.page_memory import SHARED_MEMORY, SharedSegment
from kvasir_workers.kv.transfer.page_content import copy_pages, layout_dtype, layout_page_bytes, pack_pages

SEALED_CHUNK_BYTES = 2**20
"""Sent at a time: small enough to stay in a cache between the copy and the seal, and that tokens get in between."""

COPIED_CHUNK_BYTES = 16 * 2**20
"""Copied at a time: some milliseconds, so that a word to stop gets in between; a message for each costs 0.1."""

TransportLabel = Literal["shared_memory", "tcp"]


class PageWriter(Protocol):
    """Brings pages to one reservation, so many bytes at a time that it is worth a message."""

    label: TransportLabel
    chunk_bytes: int

    def write(self, source: Sequence[PageIndex], target: Sequence[PageIndex]) -> memoryview | None:
        """Write our pages `source` to the other side's `target`: None if that is done, else what is to be sent."""
        ...


class TcpWriter:
    """Page contents to be sent."""

    label: TransportLabel = "tcp"
    chunk_bytes: int = SEALED_CHUNK_BYTES

    def __init__(self, pages: Tensor) -> None:
        self._pages = pages

    def write(self, source: Sequence[PageIndex], target: Sequence[PageIndex]) -> memoryview | None:
        return pack_pages(self._pages, source)


class SharedMemoryWriter:
    """Straight into the other replica's pages on the same host."""

    label: TransportLabel = "shared_memory"
    chunk_bytes: int = COPIED_CHUNK_BYTES

    def __init__(self, pages: Tensor, segment: SharedSegment) -> None:
        self._pages = pages
        self._segment = segment

    def write(self, source: Sequence[PageIndex], target: Sequence[PageIndex]) -> memoryview | None:
        copy_pages(self._pages, source, self._segment.tensor, target)
        return None


class WriterFactory:
    """Chooses a writer for a ticket; remembers the segments of living replicas."""

    def __init__(self, pages: Tensor, layout: PageLayout, *, allow_shared_memory: bool) -> None:
        self._pages = pages
        self._layout = layout
        self._allow_shared_memory = allow_shared_memory
        self._segments: dict[str, SharedSegment] = {}

    def writer_for(self, ticket: HandoverTicket) -> PageWriter:
        segment = self._segment(ticket.segment) if self._allow_shared_memory and ticket.segment else None
        if segment is not None and max(ticket.page_indices, default=0) < segment.tensor.shape[2]:
            return SharedMemoryWriter(self._pages, segment)
        return TcpWriter(self._pages)

    def _segment(self, name: str) -> SharedSegment | None:
        """The segment, or None if it can't be had: on another host, or of another layout (the handshake will tell)."""
        for known in [known for known in self._segments if not (SHARED_MEMORY / known).exists()]:
            del self._segments[known]
        if name not in self._segments:
            try:
                self._segments[name] = self._attach(name)
            except (OSError, ValueError):
                return None
        return self._segments[name]

    def _attach(self, name: str) -> SharedSegment:
        layout = self._layout
        num_pages, rest = divmod((SHARED_MEMORY / Path(name).name).stat().st_size, layout_page_bytes(layout))
        if rest:
            raise ValueError(f"segment {name} is not made of pages of this layout")
        shape = (layout.num_layers, 2, num_pages, layout.page_size, layout.num_kv_heads, layout.head_dim)
        return SharedSegment.attach(name, shape, layout_dtype(layout))
