"""One hand-over on its way, as the prefill side keeps it."""

from collections import deque
from dataclasses import dataclass, field

from kvasir_protocol.ids import Generation, PageIndex, RequestId
from kvasir_protocol.messages import HandoverTicket
from kvasir_workers.kv.transfer.group_line import GroupLine
from kvasir_workers.kv.transfer.page_stream import PageLine
from kvasir_workers.kv.transfer.sealing import PageSeal
from kvasir_workers.kv.transfer.writers import PageWriter

PushKey = tuple[str, Generation]
"""A reservation: the other side's endpoint and its generation."""


@dataclass(slots=True)
class Way:
    """How contents are sent. pages_on_line: whose memory the line still reads."""

    line: PageLine | GroupLine
    seal: PageSeal | None
    pages_on_line: list[PageIndex] = field(default_factory=list)
    is_watched: bool = False


@dataclass(slots=True)
class Push:
    """One hand-over on its way. unsent: our pages, from the ticket's num_sent-th on. way: not where they are written
    straight."""

    ticket: HandoverTicket
    request_id: RequestId
    writer: PageWriter
    deadline: float
    unsent: deque[PageIndex] = field(default_factory=deque)
    num_sent: int = 0
    busy_since: float = 0.0
    emitted_token_ids: tuple[int, ...] | None = None
    finished_at: float = 0.0
    is_granted: bool = False
    way: Way | None = None


@dataclass(slots=True)
class PushTotals:
    """As in HandoverCounters."""

    requests: int = 0
    tokens: int = 0
    bytes: dict[str, int] = field(default_factory=lambda: {"shared_memory": 0, "process_group": 0, "tcp": 0})
    hidden_bytes: int = 0
    push_s: float = 0.0
    exposed_s: float = 0.0


def key_of(ticket: HandoverTicket) -> PushKey:
    return ticket.endpoint, ticket.generation
