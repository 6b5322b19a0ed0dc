"""One replica's engine: requests in, tokens out, a step at a time."""

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, fields
from time import monotonic
from typing import Protocol

from kvasir_protocol.config import EngineConfig
from kvasir_protocol.errors import ContextTooLong, InvalidRequest, ServiceUnavailable
from kvasir_protocol.events import EngineCounters, TokenLogprobs, TokenOutput
from kvasir_protocol.ids import PageIndex, RequestId
from kvasir_protocol.messages import HandoverTicket
from kvasir_protocol.request import MAX_CACHE_PRIORITY, FinishReason, GenerationRequest
from kvasir_protocol.structured import FIELD
from kvasir_workers.grammar.state import Grammar, GrammarState
from kvasir_workers.kv.manager import KvManager
from kvasir_workers.prompt_reader import PromptPooler, PromptScorer
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.sampling_limits import check_token_ids
from kvasir_workers.scheduler import ScheduledSequence, Scheduler, StepPlan
from kvasir_workers.sequence import Sequence

_TOO_COMPLEX = f"{FIELD}: the form became too complex to follow in the middle of the answer; make it simpler"


class Runner(Protocol):
    """Computes a plan on the device."""

    def run(self, plan: StepPlan) -> list[SampledToken]:
        """Write the new tokens' keys and values; one sampled token per entry that samples, in the plan's order."""
        ...


class PageExporter(Protocol):
    """Takes pages that leave for another replica: pinned until they come back through Engine.release_exported."""

    def export(self, sequence: Sequence, first_page: int, pages: Many[PageIndex]) -> None:
        """Send these READY pages, the sequence's pages from first_page on."""
        ...

    def finish(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None:
        """All pages were exported: once they are sent, the other replica may go on after emitted_token_ids."""
        ...

    def cancel(self, sequence: Sequence) -> None:
        """The sequence ended here: nothing more will come."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """max_sequence_tokens: prompt and answer together, what the context and the pages can hold."""

    max_sequence_tokens: int
    vocab_size: int
    eos_token_ids: frozenset[int]


class Engine:
    """The loop's body. Not thread-safe: one thread owns it. clock: monotonic seconds, for deadlines."""

    def __init__(
        self,
        runner: Runner,
        kv: KvManager,
        config: EngineConfig,
        limits: EngineLimits,
        exporter: PageExporter | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._runner = runner
        self._kv = kv
        self._limits = limits
        self._exporter = exporter
        self._clock = clock
        self._max_num_seqs = config.max_num_seqs
        self._scheduler = Scheduler(config, kv)
        self._reserved: set[Sequence] = set()
        self._exported: Counter[PageIndex] = Counter()
        self._counts: Counter[str] = Counter({item.name: 0 for item in fields(EngineCounters)})

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    @property
    def has_work(self) -> bool:
        return self.num_running + self.num_waiting > 0

    def counters(self) -> EngineCounters:
        preempted, recomputed = self._scheduler.num_preemptions, self._scheduler.num_recomputed_tokens
        return EngineCounters(**{**self._counts, "num_preemptions": preempted, "recomputed_tokens": recomputed})

    @property
    def num_steps(self) -> int:
        return self._counts["num_steps"]

    @property
    def num_used_pages(self) -> int:
        return self._kv.num_used

    # Requests

    def add(
        self, request: GenerationRequest, ticket: HandoverTicket | None = None, grammar: Grammar | None = None
    ) -> None:
        """Queue a request; with a ticket its pages leave after the first token.

        grammar: the compiled form of its structured_outputs. Raises InvalidRequest, or ServiceUnavailable if the line
        is full. A stream that goes on from another replica is always taken: it was accepted before, and has had its
        first token in time.
        """
        self._check(request)
        sequence = Sequence(request, ticket, _grammar_state(request, grammar))
        sequence.arrived_at = self._clock()
        if not request.emitted_token_ids:
            self._check_line(sequence)
            if request.deadline_s is not None:
                sequence.give_up_at = sequence.arrived_at + request.deadline_s
        self._scheduler.enqueue(sequence)

    def _check_line(self, sequence: Sequence) -> None:
        try:
            self._scheduler.check_bounds(sequence.num_tokens)
        except ServiceUnavailable:
            self._counts["refused_requests"] += 1
            raise

    def abort(self, request_id: RequestId) -> bool:
        """End a sequence and take its pages back. False if there is none (it may just have ended)."""
        sequence = self._scheduler.find(request_id)
        if sequence is None:
            return False
        self._scheduler.remove(sequence)
        if sequence.ticket is not None and self._exporter is not None:
            self._exporter.cancel(sequence)
        self._counts["finished_abort"] += 1
        return True

    def _check(self, request: GenerationRequest) -> None:
        prompt, vocab_size = request.prompt_token_ids, self._limits.vocab_size
        if request.sampling.max_tokens is None or request.sampling.seed is None:
            raise InvalidRequest("max_tokens and seed are to be set before a request reaches an engine", "max_tokens")
        if request.deadline_s is not None and not request.deadline_s > 0:
            raise InvalidRequest(f"a deadline lies above 0 s, got {request.deadline_s}", "deadline_s")
        if request.choice_index < 0:
            raise InvalidRequest(f"choices are counted from 0, got {request.choice_index}", "n")
        if not prompt:
            raise InvalidRequest("the prompt is empty; give at least one token", "prompt")
        if not all(0 <= token_id < vocab_size for token_id in (*prompt, *request.emitted_token_ids)):
            raise InvalidRequest(f"the prompt has token ids outside the vocabulary of {vocab_size}", "prompt")
        if not all(0 <= token_id < vocab_size for token_id in request.sampling.stop_token_ids):
            raise InvalidRequest(f"a stop token id is outside the vocabulary of {vocab_size}", "stop_token_ids")
        check_token_ids(request.sampling, vocab_size, self._limits.eos_token_ids)
        num_tokens = len(prompt) + request.max_tokens
        if num_tokens > self._limits.max_sequence_tokens:
            raise ContextTooLong(
                f"prompt of {len(prompt)} tokens and max_tokens of {request.max_tokens} make {num_tokens}; this model "
                f"serves up to {self._limits.max_sequence_tokens} in all: shorten the prompt or lower max_tokens",
                "max_tokens" if len(prompt) < self._limits.max_sequence_tokens else "prompt",
            )
        if not 0 <= request.cache_priority <= MAX_CACHE_PRIORITY:
            raise InvalidRequest(
                f"cache_priority must be between 0 and {MAX_CACHE_PRIORITY}, got {request.cache_priority}",
                "cache_priority",
            )
        if request.emitted_token_ids and len(request.emitted_token_ids) >= request.max_tokens:
            raise InvalidRequest("all of max_tokens were emitted already", "emitted_token_ids")
        if self._scheduler.find(request.request_id) is not None:
            raise InvalidRequest(f"request id {request.request_id!r} is in use", "request_id")

    # The step

    def step(self) -> list[TokenOutput]:
        """Plan, run, commit: one pass of the model and what it yielded (empty if nothing could run)."""
        overdue = [self._give_up(sequence) for sequence in self._scheduler.overdue(self._clock())]
        plan = self._scheduler.plan(reserved=self._reserved)
        if not plan.entries:
            return overdue
        self._note_starts(plan)
        sampled = self._runner.run(plan)
        return [*overdue, *self._commit(plan, sampled)]

    def _give_up(self, sequence: Sequence) -> TokenOutput:
        """End a sequence that waits for its first token and would get it too late."""
        self._scheduler.remove(sequence)
        if sequence.ticket is not None and self._exporter is not None:
            self._exporter.cancel(sequence)
        self._counts["finished_error"] += 1
        return TokenOutput(
            request_id=sequence.request_id,
            first_index=0,
            token_ids=(),
            finish_reason="error",
            error=f"no turn came within the deadline of {sequence.request.deadline_s:g} s; "
            f"{self.num_waiting} others wait and {self.num_running} run here",
        )

    def _note_starts(self, plan: StepPlan) -> None:
        now = self._clock()
        for entry in plan.entries:
            if entry.sequence.started_at is None:
                entry.sequence.started_at = now

    def _commit(self, plan: StepPlan, sampled: list[SampledToken]) -> list[TokenOutput]:
        self._counts["num_steps"] += 1
        outputs = []
        tokens = iter(sampled)
        for entry in plan.entries:
            sequence, samples = entry.sequence, entry.samples
            self._count_prompt_tokens(entry)
            sequence.num_computed += entry.num_new
            self._kv.publish_computed(sequence)
            if sequence.ticket is not None:
                self._export_published(sequence)
            if samples:
                outputs.append(self._append(sequence, next(tokens)))
            elif not sequence.num_pending:
                outputs.append(self._embed(sequence))
        return outputs

    def _embed(self, sequence: Sequence) -> TokenOutput:
        """A pooling request's only output: its prompt is computed, and no token is wanted."""
        reader = sequence.prompt_reader
        assert isinstance(reader, PromptPooler), f"{sequence.request_id} has nothing left to compute"
        self._count_prompt(sequence)
        self._finish(sequence, "stop")
        return TokenOutput(
            request_id=sequence.request_id,
            first_index=0,
            token_ids=(),
            finish_reason="stop",
            num_cached_tokens=sequence.num_cached_tokens or 0,
            embedding=reader.embedding(),
            queue_s=_queue_s(sequence),
        )

    def _append(self, sequence: Sequence, token: SampledToken) -> TokenOutput:
        first_index = sequence.num_generated
        is_first = first_index == len(sequence.request.emitted_token_ids)
        if is_first:
            self._count_prompt(sequence)
        if sequence.grammar is not None and not sequence.grammar.accept((token.token_id,)):
            self._finish(sequence, "error")
            return TokenOutput(
                request_id=sequence.request_id,
                first_index=first_index,
                token_ids=(),
                finish_reason="error",
                error=_TOO_COMPLEX,
                error_field=FIELD,
            )
        sequence.token_ids.append(token.token_id)
        self._counts["generated_tokens"] += 1
        self._scheduler.count_output(sequence)
        is_stop = self._is_stop(sequence, token.token_id)
        reason = self._finish_reason(sequence, is_stop=is_stop)
        if reason is not None:
            self._finish(sequence, reason)
        return TokenOutput(
            request_id=sequence.request_id,
            first_index=first_index,
            token_ids=(token.token_id,),
            logprobs=(token.logprobs,) if token.logprobs is not None else (),
            finish_reason=reason,
            stop_token=token.token_id if is_stop else None,
            num_cached_tokens=sequence.num_cached_tokens or 0,
            prompt_logprobs=_prompt_logprobs(sequence) if is_first else (),
            queue_s=_queue_s(sequence) if is_first else None,
        )

    def _is_stop(self, sequence: Sequence, token_id: int) -> bool:
        sampling = sequence.request.sampling
        if sequence.grammar is not None and token_id in self._limits.eos_token_ids:
            return True  # the grammar lets an end through, below min_tokens only if nothing else can follow
        if sequence.num_generated < sampling.min_tokens:
            return False
        is_eos = token_id in self._limits.eos_token_ids and not sampling.ignore_eos
        return is_eos or token_id in sampling.stop_token_ids

    def _finish_reason(self, sequence: Sequence, *, is_stop: bool) -> FinishReason | None:
        if is_stop or (sequence.grammar is not None and sequence.grammar.has_ended):
            return "stop"
        if sequence.num_generated >= sequence.request.max_tokens:
            return "length"
        return "handed_over" if sequence.ticket is not None else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._kv.publish_last(sequence)
        if sequence.ticket is not None:
            assert self._exporter is not None, f"{sequence.request_id} has a ticket, but nothing exports pages"
            if reason == "handed_over":
                self._export_published(sequence)
                self._exporter.finish(sequence, (sequence.token_ids[-1],))
            else:
                self._exporter.cancel(sequence)
        self._scheduler.remove(sequence)
        self._counts[f"finished_{reason}"] += 1

    def _count_prompt_tokens(self, entry: ScheduledSequence) -> None:
        sequence = entry.sequence
        num_left = sequence.num_prompt_tokens - sequence.num_computed
        self._counts["computed_prompt_tokens"] += max(0, min(num_left, entry.num_new))

    def _count_prompt(self, sequence: Sequence) -> None:
        if sequence.num_cached_tokens is not None:
            self._counts["prompt_tokens"] += sequence.num_prompt_tokens
            self._counts["cached_prompt_tokens"] += sequence.num_cached_tokens

    # Pages that leave for another replica

    def _export_published(self, sequence: Sequence) -> None:
        first = sequence.num_exported_pages
        pages = sequence.pages[first : sequence.num_published_pages]
        if not pages or self._exporter is None:
            return
        self._kv.pin(pages)
        self._exported.update(pages)
        sequence.num_exported_pages += len(pages)
        self._exporter.export(sequence, first, pages)

    def release_exported(self, pages: Many[PageIndex]) -> None:
        """The exporter is done with these pages."""
        self._exported.subtract(pages)
        self._kv.release(reversed(pages))

    # Pages that come from another replica

    def reserve(self, request: GenerationRequest, grammar: Grammar | None = None) -> Sequence:
        """A sequence with pages for all its tokens, to be filled from outside; it does not run yet.

        Its first num_computed tokens are in the prefix cache already. Raises InvalidRequest, or ServiceUnavailable
        if there is no room now, or only room that those in line wait for.
        """
        self._check(request)
        sequence = Sequence(request, grammar=_grammar_state(request, grammar))
        sequence.prompt_reader = None  # the prefill side computes the prompt, and so reads it
        if self.num_running + self.num_waiting + len(self._reserved) >= self._max_num_seqs:
            raise ServiceUnavailable(f"all {self._max_num_seqs} places for running sequences are taken")
        # A page arrives whole or not at all: what is held here up to its middle is of no use.
        self._kv.attach_prefix(sequence, can_copy=False)
        num_missing = self._kv.num_missing(sequence)
        num_free = self._kv.num_available - self._scheduler.num_awaited_pages
        if num_missing > num_free or not self._kv.try_grow(sequence, sequence.num_tokens):
            self._kv.detach(sequence)
            raise ServiceUnavailable(f"{max(0, num_free)} pages are free, the request needs {num_missing}")
        if not self._scheduler.has_room(sequence, self._reserved):
            self._kv.detach(sequence)
            raise ServiceUnavailable("the free pages are promised to the longest answers of those that run")
        self._reserved.add(sequence)
        return sequence

    def start_reserved(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None:
        """All pages were filled: the sequence goes on after the tokens that the other replica emitted."""
        self._reserved.remove(sequence)
        sequence.num_computed = sequence.num_tokens
        self._kv.publish_computed(sequence)
        sequence.token_ids.extend(emitted_token_ids)
        if sequence.grammar is not None:
            sequence.grammar.accept(emitted_token_ids)
        self._scheduler.admit_running(sequence)

    def release_reserved(self, sequence: Sequence) -> None:
        """Nobody can write into the reserved pages any more: they may be used again."""
        self._reserved.remove(sequence)
        self._kv.detach(sequence)

    def audit(self) -> None:
        """Check that every page is held by exactly those who should. Raises AssertionError."""
        reserved = [page for sequence in self._reserved for page in sequence.pages]
        self._scheduler.audit([*reserved, *self._exported.elements()])


def _grammar_state(request: GenerationRequest, grammar: Grammar | None) -> GrammarState | None:
    """The beginning of the request's grammar, or where its emitted tokens have led to."""
    wanted = request.sampling.structured_outputs
    if wanted is None:
        return None
    if grammar is None:
        raise InvalidRequest(f"{wanted.field}: the grammar was not compiled before the request was added", wanted.field)
    state = grammar.start()
    if not state.accept(request.emitted_token_ids):
        raise InvalidRequest("the emitted tokens are not of the form that was asked for", "emitted_token_ids")
    return state


def _queue_s(sequence: Sequence) -> float | None:
    return None if sequence.started_at is None else sequence.started_at - sequence.arrived_at


def _prompt_logprobs(sequence: Sequence) -> tuple[TokenLogprobs, ...]:
    reader = sequence.prompt_reader
    return tuple(reader.logprobs) if isinstance(reader, PromptScorer) else ()
