"""One stream of tokens inside an engine."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvasir_protocol.ids import PageHash, PageIndex, RequestId
from kvasir_protocol.page_hash import child_hash, root_hash
from kvasir_protocol.request import GenerationRequest
from kvasir_workers.grammar.state import GrammarState
from kvasir_workers.kv.offload.disk_tier import DiskWait
from kvasir_workers.kv.offload.tier_slots import StoredPage
from kvasir_workers.prompt_reader import PromptReader, prompt_reader


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, and how many of them the model has computed: the only progress there is.

        token_ids   [ prompt ........................ | generated ............ ] num_coming
        computed    [ num_computed have keys and values | num_in_flight | num_pending ....... ]

    num_in_flight: tokens that steps which have not landed yet compute; num_coming: those that they will sample.
    pages hold the keys and values of the first num_computed tokens; page_hashes name the full pages among them;
    the first num_published_pages are READY, the others are this sequence's alone.
    grammar: what a structured answer may still become; it has accepted the generated tokens.
    copy_source: the page that comes after pages and holds num_copied of the computed tokens begins as its copy; the
    source stays held until the step has run. replaced_pages: its own, of content that the tree had already, held until
    no step reads them. awaited_page: another sequence computes it, this one waits for it.
    restored_from: where the pages that come after pages, and count as computed, lie until the next step brings them.
    disk_wait: pages of it were read from disk while it stood in line; once in its life.
    is_prefill_only: its pages go to another replica when the prompt is computed; num_exported_pages were offered to it.
    prompt_reader: sees the prompt's hidden states. arrival_index orders by arrival; arrived_at, started_at: by the
    engine's clock, in seconds; give_up_at: by the same, when a first token is of no use any more.
    end_token_ids: those that end the answer from min_tokens on.
    num_lost_tokens: computed before it was preempted, and not again since.
    """

    request: GenerationRequest
    is_prefill_only: bool = False
    grammar: GrammarState | None = None
    end_token_ids: frozenset[int] = frozenset()
    request_id: RequestId = field(init=False)
    max_tokens: int = field(init=False)
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    prompt_reader: PromptReader | None = field(init=False)
    num_computed: int = 0
    num_in_flight: int = 0
    num_coming: int = 0
    has_ended: bool = False
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
    replaced_pages: list[PageIndex] = field(default_factory=list)
    awaited_page: PageHash | None = None
    restored_from: list[StoredPage] = field(default_factory=list)
    disk_wait: DiskWait | None = None
    _page_row: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    _num_in_row: int = 0

    def __post_init__(self) -> None:
        self.request_id, self.max_tokens = self.request.request_id, self.request.max_tokens
        self.token_ids = [*self.request.prompt_token_ids, *self.request.emitted_token_ids]
        self.num_prompt_tokens = len(self.request.prompt_token_ids)
        self.prompt_reader = prompt_reader(self.request)

    def page_row(self) -> NDArray[np.int64]:
        """The pages as an array, valid until they change: a step copies it into its page tables."""
        num_pages = len(self.pages)
        if self._num_in_row < num_pages:
            if len(self._page_row) < num_pages:
                self._page_row = np.resize(self._page_row, max(8, 2 * num_pages))
            self._page_row[self._num_in_row : num_pages] = self.pages[self._num_in_row :]
            self._num_in_row = num_pages
        return self._page_row[:num_pages]

    def replace_page(self, index: int, page: PageIndex) -> None:
        """Another page has the same content; a step on its way may still read the former."""
        self.replaced_pages.append(self.pages[index])
        self.pages[index] = page
        self._num_in_row = min(self._num_in_row, index)

    def drop_pages(self) -> None:
        """It has computed nothing any more."""
        self.pages = []
        self.num_published_pages = 0
        self.num_computed = 0
        self._num_in_row = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_pending(self) -> int:
        """Tokens that no step has taken up yet, known or coming."""
        return len(self.token_ids) + self.num_coming - self.num_computed - self.num_in_flight

    @property
    def is_ending(self) -> bool:
        """The token that is coming is surely its last."""
        return self.num_coming > 0 and (self.is_prefill_only or self.num_generated + 1 >= self.max_tokens)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_final_tokens(self) -> int:
        """At most so many tokens need keys and values before it ends: the last token never does."""
        if self.is_prefill_only or self.request.pooling is not None:
            return self.num_tokens
        return self.num_prompt_tokens + self.max_tokens - 1

    @property
    def num_reusable(self) -> int:
        """Leading tokens that cached pages may stand in for; the last one must be computed to go on."""
        limit = self.num_tokens - 1
        return limit if self.prompt_reader is None else min(limit, self.prompt_reader.num_skippable)

    @property
    def held_pages(self) -> list[PageIndex]:
        """All that it holds: its pages, the one that is copied, and those that a step on its way still reads."""
        copied = [] if self.copy_source is None else [self.copy_source]
        return [*self.pages, *copied, *self.replaced_pages]

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
