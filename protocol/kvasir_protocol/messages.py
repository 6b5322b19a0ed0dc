"""Every message of the data plane. Each is one msgpack map on the wire (`wire.py`).

router  -> replica    Hello  Ping  Submit  Reserve  HandOver  Abort
replica -> router     Welcome  Stats  Tokens  Rejected  Reserved  ReserveRefused  HandoverFailed
prefill -> decode     BeginPush  PushPages  Commit  Quiet
decode  -> prefill    PushGranted  PushRefused  CancelPush
leader  -> rank       RunStep  FinishStep  EndWarmUp  ReadPages  WritePages
rank    -> leader     PageDoor
router  -> controller GetView            controller -> router  View
"""

from dataclasses import dataclass

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.events import ReplicaStats, TokenOutput
from kvasir_protocol.ids import Generation, PageIndex, RequestId
from kvasir_protocol.request import GenerationRequest
from kvasir_protocol.view import ClusterView, ReplicaInfo

LAYOUT_VERSION = 2
"""Of pages and of how their contents are framed; it changes when two sides could not read each other."""

MAX_DEADLINE_S = 30.0
"""Pages that nobody fills are lost to others until then, whatever a message asks for; and for longer than this
routers and controllers would take a replica that waits for them for a hung one."""


def _check_deadline(deadline_s: float) -> None:
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        raise InvalidRequest(f"a deadline lies between 0 and {MAX_DEADLINE_S:g} s, got {deadline_s}", "deadline_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLayout:
    """What one page is made of: both sides of a hand-over must have the same.

    A page holds keys and values of page_size tokens: [num_layers, 2, page_size, num_kv_heads, head_dim] of dtype.
    model_fingerprint names the weights, so that pages of one model never feed another.
    """

    version: int
    dtype: str
    page_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    model_fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCut:
    """What of each page one rank holds: some layers, and at each place of its heads' axis one head of the model's."""

    first_layer: int
    num_layers: int
    kv_heads: tuple[int, ...]

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.num_layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSegment:
    """Shared memory that the cut of one rank lies in."""

    name: str
    cut: PageCut


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverTicket:
    """A decode replica's promise to take a request's pages; the router carries it to the prefill replica.

    The sequence's pages before first_page are held already; its page first_page + i goes to page_indices[i].
    segments: the shared memory in which those pages lie, a piece for each rank; none where they can't be mapped.
    """

    endpoint: str
    generation: Generation
    first_page: int
    page_indices: tuple[PageIndex, ...]
    segments: tuple[PageSegment, ...]
    deadline_s: float

    def __post_init__(self) -> None:
        _check_deadline(self.deadline_s)
        if self.first_page < 0 or any(page < 0 for page in self.page_indices):
            raise InvalidRequest("pages are counted from 0", "page_indices")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A router presents itself; asks for a Welcome."""

    sender: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    info: ReplicaInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Asks for Stats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    stats: ReplicaStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Generate. With ticket_within_s: only compute the prompt and the first token; the pages leave for another replica,
    which HandOver names within so many seconds, at any time before the end or after it."""

    request: GenerationRequest
    ticket_within_s: float | None = None

    def __post_init__(self) -> None:
        if self.ticket_within_s is not None:
            _check_deadline(self.ticket_within_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """Where the pages of a request go that was submitted with ticket_within_s. If it comes too late, nothing happens:
    the decode side's deadline tells."""

    request_id: RequestId
    ticket: HandoverTicket


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Set pages aside for a request that another replica will prefill; answered Reserved or ReserveRefused."""

    request: GenerationRequest
    deadline_s: float

    def __post_init__(self) -> None:
        _check_deadline(self.deadline_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    request_id: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """All tokens that one step made for one router."""

    outputs: tuple[TokenOutput, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The request was not taken; is_invalid tells the caller's mistake from a replica that can't take it now."""

    request_id: RequestId
    message: str
    is_invalid: bool
    field: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    request_id: RequestId
    ticket: HandoverTicket


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveRefused:
    request_id: RequestId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverFailed:
    """Pages did not arrive; the decode replica holds nothing of the request any more: submit it again."""

    request_id: RequestId
    generation: Generation
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginPush:
    """Asks to write into the pages reserved for a request: another's pages there would tell one caller of another.

    process_id and process_start (`kv/transfer/process_identity.py`) let a peer on the same host see that the writer
    died; so does held_file, a name in shared memory of what the writer holds as long as it lives (`held_files.py`), to
    one that counts processes otherwise; "" if it has none. is_sealed: contents that go over TCP must be.
    uses_process_group: they are to go through one.
    """

    request_id: RequestId
    generation: Generation
    layout: PageLayout
    process_id: int
    process_start: int
    uses_shared_memory: bool
    held_file: str = ""
    is_sealed: bool = True
    uses_process_group: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PushGranted:
    """The writer may begin: in shared memory, or (page_endpoint not "") by contents that it sends there.

    page_key: fresh random bytes for this push alone; whoever knows it is the writer that was granted. is_sealed: the
    contents are encrypted with it. meeting: where the process group is (`kv/transfer/pair_group.py`), if one is used.
    """

    generation: Generation
    page_endpoint: str = ""
    page_key: bytes = b""
    is_sealed: bool = True
    meeting: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRefused:
    generation: Generation
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPages:
    """These pages are there. Over TCP their contents follow, page after page (`kv/transfer/page_stream.py`); through a
    process group they come now."""

    generation: Generation
    page_indices: tuple[PageIndex, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The writer has written or sent all pages; once they are there the sequence may start.

    emitted_token_ids went to the client already.
    """

    generation: Generation
    emitted_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelPush:
    """Stop writing, then say Quiet."""

    generation: Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """This side will not write into the reservation's pages any more.

    broken_meeting: where the process group was that is of no use any more, if that is why.
    """

    generation: Generation
    reason: str
    broken_meeting: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GetView:
    """A router asks for the View."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    view: ClusterView


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """A leader tells the ranks of its gang what the next step computes. All numbers are int32, little-endian.

    token_ids: of S sequences, one after the other; coming: places among them that the step before fills, then which of
    its rows does. starts, counts: of each sequence. samples: 1 for those that yield a token, else 0. num_shown: how
    many of its rows a reader of prompts wants to see. pages: of each sequence, as many as its tokens need. copies:
    source page, target page and number of tokens, each. number: of all that the leader told the gang, from 0 on.
    """

    number: int
    token_ids: bytes
    coming: bytes
    starts: bytes
    counts: bytes
    samples: bytes
    num_shown: bytes
    pages: bytes
    copies: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishStep:
    """The last stage's hidden states of the oldest step that is not finished are to become logits now, if any are
    wanted of it. number: as in RunStep."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EndWarmUp:
    """The steps from here on are somebody's: a rank that still has to compile something for one of them says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageDoor:
    """Where a rank reads and writes pages for its leader, if that can't reach them; keys seal what goes over."""

    host: str
    port: int
    keys: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPages:
    """Answered with their content, page after page, of what the rank holds of them."""

    page_indices: tuple[PageIndex, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePages:
    """Their content follows; answered when it is there."""

    page_indices: tuple[PageIndex, ...]


Message = (
    Hello
    | Welcome
    | Ping
    | Stats
    | Submit
    | HandOver
    | Reserve
    | Abort
    | Tokens
    | Rejected
    | Reserved
    | ReserveRefused
    | HandoverFailed
    | BeginPush
    | PushGranted
    | PushRefused
    | PushPages
    | Commit
    | CancelPush
    | Quiet
    | GetView
    | View
    | RunStep
    | FinishStep
    | EndWarmUp
    | PageDoor
    | ReadPages
    | WritePages
)
