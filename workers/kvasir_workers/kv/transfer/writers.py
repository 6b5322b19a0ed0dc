"""How pages get to another replica: into its memory, or as bytes in messages."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from kvasir_protocol.ids import Generation, PageIndex
from kvasir_protocol.messages import HandoverTicket, PageLayout, PushPages
from kvasir_workers.kv.page_memory import SHARED_MEMORY, SharedSegment
from kvasir_workers.kv.transfer.page_content import copy_pages, layout_dtype, layout_page_bytes, pack_pages

TCP_CHUNK_BYTES = 4 * 2**20
"""Pages in one message: large enough that the frame costs nothing, small enough that tokens get in between."""

TransportLabel = Literal["shared_memory", "tcp"]


class PageWriter(Protocol):
    """Brings pages to one reservation."""

    label: TransportLabel

    def write(self, source: Sequence[PageIndex], target: Sequence[PageIndex]) -> Iterator[PushPages]:
        """Write our pages `source` to the other side's `target`; each message tells it of some that are there."""
        ...


class TcpWriter:
    """Page contents in messages."""

    label: TransportLabel = "tcp"

    def __init__(self, pages: Tensor, page_bytes: int, generation: Generation) -> None:
        self._pages = pages
        self._pages_per_message = max(1, TCP_CHUNK_BYTES // page_bytes)
        self._generation = generation

    def write(self, source: Sequence[PageIndex], target: Sequence[PageIndex]) -> Iterator[PushPages]:
        step = self._pages_per_message
        for start in range(0, len(source), step):
            yield PushPages(
                generation=self._generation,
                page_indices=tuple(target[start : start + step]),
                content=pack_pages(self._pages, source[start : start + step]),
            )


class SharedMemoryWriter:
    """Straight into the other replica's pages on the same host."""

    label: TransportLabel = "shared_memory"

    def __init__(self, pages: Tensor, segment: SharedSegment, generation: Generation) -> None:
        self._pages = pages
        self._segment = segment
        self._generation = generation

    def write(self, source: Sequence[PageIndex], target: Sequence[PageIndex]) -> Iterator[PushPages]:
        copy_pages(self._pages, source, self._segment.tensor, target)
        yield PushPages(generation=self._generation, page_indices=tuple(target), content=b"")


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
            return SharedMemoryWriter(self._pages, segment, ticket.generation)
        return TcpWriter(self._pages, layout_page_bytes(self._layout), ticket.generation)

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
