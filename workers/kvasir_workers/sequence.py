"""One stream of tokens inside an engine."""

from dataclasses import dataclass, field

from kvasir_protocol.ids import PageHash, PageIndex, RequestId
from kvasir_protocol.messages import HandoverTicket
from kvasir_protocol.page_hash import child_hash, root_hash
from kvasir_protocol.request import GenerationRequest
from kvasir_workers.grammar.state import GrammarState
from kvasir_workers.prompt_reader import PromptReader, prompt_reader


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, and how many of them the model has computed: the only progress there is.

        token_ids   [ prompt ............ | generated ....... ]
        computed    [ num_computed tokens have keys and values | pending ]

    pages hold the keys and values of the first num_computed tokens; page_hashes name the full pages among them;
    the first num_published_pages are READY, the others are this sequence's alone.
    grammar: what a structured answer may still become; it has accepted the generated tokens.
    copy_source: the page that comes after pages and holds num_copied of the computed tokens begins as its copy; the
    source stays held until the step has run. awaited_page: another sequence computes it, this one waits for it.
    ticket: the pages go to another replica when the prompt is computed; num_exported_pages have been offered to it.
    prompt_reader: sees the prompt's hidden states. arrival_index orders by arrival; arrived_at, started_at: by the
    engine's clock, in seconds; give_up_at: by the same, when a first token is of no use any more.
    num_lost_tokens: computed before it was preempted, and not again since.
    """

    request: GenerationRequest
    ticket: HandoverTicket | None = None
    grammar: GrammarState | None = None
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    prompt_reader: PromptReader | None = field(init=False)
    num_computed: int = 0
    num_cached_tokens: int | None = None
    pages: list[PageIndex] = field(default_factory=list)
    page_hashes: list[PageHash] = field(default_factory=list)
    num_published_pages: int = 0
    num_exported_pages: int = 0
    arrival_index: int = 0
    arrived_at: float = 0.0
    started_at: float | None = None
    give_up_at: float | None = None
    num_lost_tokens: int = 0
    copy_source: PageIndex | None = None
    num_copied: int = 0
    awaited_page: PageHash | None = None

    def __post_init__(self) -> None:
        self.token_ids = [*self.request.prompt_token_ids, *self.request.emitted_token_ids]
        self.num_prompt_tokens = len(self.request.prompt_token_ids)
        self.prompt_reader = prompt_reader(self.request)
        if self.ticket is not None:
            self.num_exported_pages = self.ticket.first_page

    @property
    def request_id(self) -> RequestId:
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_pending(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_final_tokens(self) -> int:
        """At most so many tokens need keys and values before it ends: the last token never does."""
        if self.ticket is not None or self.request.pooling is not None:
            return self.num_tokens
        return self.num_prompt_tokens + self.request.max_tokens - 1

    @property
    def num_reusable(self) -> int:
        """Leading tokens that cached pages may stand in for; the last one must be computed to go on."""
        limit = self.num_tokens - 1
        return limit if self.prompt_reader is None else min(limit, self.prompt_reader.num_skippable)

    @property
    def held_pages(self) -> list[PageIndex]:
        """All that it holds: its pages, and the one that is copied."""
        return self.pages if self.copy_source is None else [*self.pages, self.copy_source]

    def hashes_up_to(self, num_tokens: int, page_size: int) -> list[PageHash]:
        """Names of the full pages within the first num_tokens tokens; computed once and kept."""
        num_pages = num_tokens // page_size
        while len(self.page_hashes) < num_pages:
            start = len(self.page_hashes) * page_size
            parent = self.hash_before(len(self.page_hashes), page_size)
            self.page_hashes.append(child_hash(parent, self.token_ids[start : start + page_size]))
        return self.page_hashes[:num_pages]

    def hash_before(self, page: int, page_size: int) -> PageHash:
        """Name of the page before the sequence's given one, all of which are full; of the root before the first."""
        return self.page_hashes[page - 1] if page else root_hash(page_size, self.request.cache_salt)
