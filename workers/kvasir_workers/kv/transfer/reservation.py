"""Pages set aside at the decode side, and who may write into them."""

from dataclasses import dataclass, field
from typing import Literal

from kvasir_protocol.ids import Generation, PageIndex
from kvasir_workers.kv.transfer.sealing import PageSeal
from kvasir_workers.kv.transfer.writer_life import WriterLife
from kvasir_workers.sequence import Sequence

Peer = bytes
"""The socket identity of a router or of a replica."""


@dataclass(slots=True)
class Reservation:
    """Pages set aside for one request. missing: those whose content has not come yet.

    writer_life: of one that writes into shared memory, if its death could be told from here. page_key: of contents that
    come over TCP. room: for contents that can't go straight to their pages.
    """

    sequence: Sequence
    generation: Generation
    router: Peer
    deadline: float
    patience_s: float
    missing: set[PageIndex]
    state: Literal["open", "pushing", "quarantined"] = "open"
    writer: Peer = b""
    writer_life: WriterLife | None = None
    page_key: bytes = b""
    seal: PageSeal | None = None
    has_line: bool = False
    uses_group: bool = False
    emitted_token_ids: tuple[int, ...] | None = None
    room: bytearray = field(default_factory=bytearray)

    @property
    def is_written_straight(self) -> bool:
        """By the writer, into memory that it shares with us."""
        return self.state != "open" and not self.page_key and not self.uses_group
