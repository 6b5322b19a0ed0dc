"""A model whose next token is a function of all tokens before it, read back from its pages: a mistake in any shows."""

import zlib
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from kvasir_protocol.ids import Generation, PageIndex, RequestId
from kvasir_protocol.messages import HandoverTicket
from kvasir_protocol.request import FinishReason, GenerationRequest, SamplingParams
from kvasir_workers.kv.manager import KvManager, PageCopy
from kvasir_workers.kv.offload.moves import Moves
from kvasir_workers.kv.page_pool import PageState
from kvasir_workers.kv.transfer.departures import Departure
from kvasir_workers.runner.batch import BatchBuilder, StepBatch
from kvasir_workers.runner.grammar_mask import GrammarMasks
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.sequence import Sequence
from kvasir_workers.step_plan import ScheduledSequence, StepPlan
from tests.unit.workers.fake_tiers import FakeTiers

VOCAB_SIZE = 16
EOS = 0


def make_request(
    name: str,
    prompt: Many[int],
    *,
    max_tokens: int = 4,
    emitted: Many[int] = (),
    salt: str = "",
    sampling: SamplingParams | None = None,
    **changes: object,
) -> GenerationRequest:
    """changes: other fields of the request."""
    return GenerationRequest(
        request_id=RequestId(name),
        prompt_token_ids=tuple(prompt),
        sampling=sampling or SamplingParams(max_tokens=max_tokens, seed=0, temperature=0),
        emitted_token_ids=tuple(emitted),
        cache_salt=salt,
        **changes,  # type: ignore[arg-type]
    )


def make_ticket(num_pages: int, first_page: int = 0, generation: int = 1, **changes: object) -> HandoverTicket:
    fields: dict[str, object] = {
        "endpoint": "tcp://127.0.0.1:1",
        "generation": Generation(generation),
        "first_page": first_page,
        "page_indices": tuple(PageIndex(i) for i in range(num_pages)),
        "segments": (),
        "deadline_s": 5.0,
    }
    return HandoverTicket(**{**fields, **changes})  # type: ignore[arg-type]


def forbidden_tokens(sampling: SamplingParams, num_generated: int) -> set[int]:
    """What may not come yet."""
    if num_generated >= sampling.min_tokens:
        return set()
    return {*sampling.stop_token_ids} | (set() if sampling.ignore_eos else {EOS})


def next_token(history: Many[int], forbidden: set[int]) -> int:
    """The token that the fake model says after history."""
    token = zlib.crc32(bytes(history)) % VOCAB_SIZE
    while token in forbidden and len(forbidden) < VOCAB_SIZE:
        token = (token + 1) % VOCAB_SIZE
    return token


def expected_answer(request: GenerationRequest) -> tuple[list[int], FinishReason]:
    """All tokens that a request yields, those included that were emitted before, and why it ends."""
    history, sampling = list(request.prompt_token_ids), request.sampling
    answer: list[int] = []
    while True:
        token = next_token([*history, *answer], forbidden_tokens(sampling, len(answer)))
        answer.append(token)
        stops = {*sampling.stop_token_ids} | (set() if sampling.ignore_eos else {EOS})
        if token in stops and len(answer) >= sampling.min_tokens:
            return answer, "stop"
        if len(answer) == request.max_tokens:
            return answer, "length"


class FakeFlight:
    """A step that runs as late as it may."""

    def __init__(self, run: Callable[[], list[SampledToken]]) -> None:
        self._run = run

    def allow(self, make_masks: Callable[[], GrammarMasks | None] | None) -> None:
        assert make_masks is None, "the fake model knows no grammars"

    def land(self) -> list[SampledToken]:
        return self._run()


class FakeRunner:
    """Keeps one token per slot where a model keeps keys and values. The content of a page that is not READY is junk.

    is_prompt: steps run as early as they may.
    """

    def __init__(self, kv: KvManager, below: FakeTiers | None = None, *, is_prompt: bool = True) -> None:
        self._kv = kv
        self._below = below
        self._is_prompt = is_prompt
        self._builder = BatchBuilder(kv.page_size, torch.device("cpu"))
        self._sampled_before: list[SampledToken] = []
        self.slots = np.full(kv.pool.num_pages * kv.page_size, VOCAB_SIZE, dtype=np.int64)
        self.plans: list[StepPlan] = []
        self.fails = False
        self.num_landed = 0

    def launch(self, plan: StepPlan) -> FakeFlight:
        if self.fails:
            raise MemoryError("no more")
        self.plans.append(plan)
        batch = self._builder.build(plan)
        if not self._is_prompt:
            return FakeFlight(partial(self._run, plan, batch))
        sampled = self._run(plan, batch)
        return FakeFlight(lambda: sampled)

    def _run(self, plan: StepPlan, batch: StepBatch) -> list[SampledToken]:
        self.num_landed += 1
        if self._below is not None and plan.moves is not None:
            self._check_restores(plan.moves)
            self._below.move(plan.moves, self.slots)
        for copy in plan.copies:
            self._copy(copy)
        if batch.coming is not None:
            said = torch.tensor([token.token_id for token in self._sampled_before])
            batch.token_ids[batch.coming.places] = said[batch.coming.rows]
        for slot in batch.slots.tolist():
            page = PageIndex(slot // self._kv.page_size)
            assert self._kv.pool.state(page) is PageState.FILLING, f"page {page} is written while READY or FREE"
            assert self._kv.pool.references(page) == 1, f"page {page} is written while shared"
        assert len(set(batch.slots.tolist())) == len(batch.slots), "two tokens share a slot"
        self.slots[batch.slots.numpy()] = batch.token_ids.numpy()
        self._sampled_before = [
            self._sample(row, entry, batch) for row, entry in enumerate(plan.entries) if entry.samples
        ]
        return self._sampled_before

    def _check_restores(self, moves: Moves) -> None:
        for restore in moves.restores:
            assert self._kv.pool.state(restore.page) is PageState.FILLING, f"page {restore.page} is written while READY"
            assert self._kv.pool.references(restore.page) == 1, f"page {restore.page} is written while shared"

    def _copy(self, copy: PageCopy) -> None:
        size = self._kv.page_size
        assert self._kv.pool.state(copy.source) is PageState.READY, f"page {copy.source} is copied before it is ready"
        assert self._kv.pool.references(copy.source) > 0, f"page {copy.source} is copied while nobody holds it"
        assert self._kv.pool.state(copy.target) is PageState.FILLING, f"page {copy.target} is written while READY"
        assert 0 < copy.num_tokens < size, f"{copy.num_tokens} tokens are copied"
        self.slots[copy.target * size :][:size] = VOCAB_SIZE
        self.slots[copy.target * size :][: copy.num_tokens] = self.slots[copy.source * size :][: copy.num_tokens]

    def _sample(self, row: int, entry: ScheduledSequence, batch: StepBatch) -> SampledToken:
        pages = batch.attention.page_tables[row].tolist()
        history = self.read(pages, batch.attention.context_lens[row])
        forbidden = forbidden_tokens(entry.sequence.request.sampling, entry.num_generated)
        return SampledToken(next_token(history, forbidden), None)

    def read(self, pages: Many[int], num_tokens: int) -> list[int]:
        size = self._kv.page_size
        return [int(self.slots[pages[i // size] * size + i % size]) for i in range(num_tokens)]

    def write(self, pages: Many[int], first_index: int, tokens: Many[int]) -> None:
        """Fill pages as another replica would; token i of the sequence is at its place in pages."""
        size = self._kv.page_size
        for i, token in enumerate(tokens, first_index):
            self.slots[pages[i // size] * size + i % size] = token


@dataclass
class ExportedPages:
    sequence: Sequence
    first_page: int
    pages: list[PageIndex]


@dataclass
class RecordingExporter:
    """What an engine handed to its exporter; pages stay pinned until the test gives them back."""

    exported: list[ExportedPages] = field(default_factory=list)
    finished: dict[RequestId, tuple[int, ...]] = field(default_factory=dict)
    cancelled: list[RequestId] = field(default_factory=list)

    def export(self, sequence: Sequence, first_page: int, pages: Many[PageIndex]) -> None:
        self.exported.append(ExportedPages(sequence, first_page, list(pages)))

    def finish(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None:
        self.finished[sequence.request_id] = emitted_token_ids

    def cancel(self, sequence: Sequence) -> None:
        self.cancelled.append(sequence.request_id)


@dataclass
class RecordingPush:
    """What left, word by word: pages from the first on, the tokens said before, or that nothing more comes."""

    told: list[tuple[Departure, tuple[object, ...]]] = field(default_factory=list)

    def export(self, departure: Departure, first_page: int, pages: Many[PageIndex]) -> None:
        self.told.append((departure, ("pages", first_page, *pages)))

    def finish(self, departure: Departure, emitted_token_ids: tuple[int, ...], finished_at: float) -> None:
        self.told.append((departure, ("end", *emitted_token_ids, finished_at)))

    def cancel(self, departure: Departure) -> None:
        self.told.append((departure, ("cancelled",)))


@dataclass
class Clock:
    """Turned by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now
