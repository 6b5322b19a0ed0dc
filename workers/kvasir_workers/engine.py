"""One replica's engine: requests in, tokens out, a step at a time."""

from collections import Counter, deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, fields
from functools import partial
from math import inf, isfinite
from time import monotonic

from kvasir_protocol.config import EngineConfig
from kvasir_protocol.errors import InvalidRequest, ServiceUnavailable
from kvasir_protocol.events import EngineCounters, TokenOutput
from kvasir_protocol.ids import PageIndex, RequestId
from kvasir_protocol.request import FinishReason, GenerationRequest
from kvasir_workers.answer_failure import AnswerFailure, failure_of
from kvasir_workers.grammar.state import Grammar
from kvasir_workers.kv.exports import PageExporter, PageExports
from kvasir_workers.kv.manager import KvManager
from kvasir_workers.prompt_reader import PromptPooler, read_logprobs
from kvasir_workers.request_check import EngineLimits, check_request, grammar_state
from kvasir_workers.runner.device import Runner, StepFlight
from kvasir_workers.runner.grammar_mask import GrammarMasks, StructuredRow, make_masks
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.scheduler import Scheduler
from kvasir_workers.sequence import Sequence
from kvasir_workers.step_plan import StepPlan


class Engine:
    """The loop's body. Not thread-safe: one thread owns it. clock: monotonic seconds, for deadlines.

    totals: what it counts, by the names of EngineCounters.
    """

    def __init__(
        self,
        runner: Runner,
        kv: KvManager,
        config: EngineConfig,
        limits: EngineLimits,
        exporter: PageExporter | None = None,
        clock: Callable[[], float] = monotonic,
        num_batches: int = 1,
        spare_tokens: int = 0,
    ) -> None:
        """num_batches: as many, of sequences that have none in common, are on their way at once. spare_tokens: as the
        scheduler has them."""
        self._runner = runner
        self._kv = kv
        self._limits = limits
        self._exports = PageExports(kv, exporter)
        self._clock = clock
        self._max_num_seqs = config.max_num_seqs
        overlaps = config.overlap is True
        assert num_batches == 1 or not overlaps, "batches of different sequences overlap as they are"
        self._num_ahead = num_batches - 1 if num_batches > 1 else int(overlaps)
        self._flights: deque[_Flight] = deque()
        self._has_failed = False
        self._num_launches = 0
        self._scheduler = Scheduler(config, kv, num_batches, spare_tokens)
        self._reserved: set[Sequence] = set()
        self.totals: Counter[str] = Counter({item.name: 0 for item in fields(EngineCounters)})

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    @property
    def has_work(self) -> bool:
        return self.num_running + self.num_waiting > 0 or bool(self._flights)

    def counters(self) -> EngineCounters:
        preempted, recomputed = self._scheduler.num_preemptions, self._scheduler.num_recomputed_tokens
        tiers = self._kv.tiers.log.counts if self._kv.tiers is not None else {}
        return EngineCounters(**{**self.totals, **tiers, "num_preemptions": preempted, "recomputed_tokens": recomputed})

    @property
    def num_moves(self) -> int:
        """Launches and landings so far: a step that does any work adds to it."""
        return self._num_launches + self.totals["num_steps"]

    @property
    def num_used_pages(self) -> int:
        return self._kv.num_used

    # Requests

    def add(self, request: GenerationRequest, grammar: Grammar | None = None, *, is_prefill_only: bool = False) -> None:
        """Queue a request. is_prefill_only: it ends with its first token, and its pages leave for another replica.

        grammar: the compiled form of its structured_outputs. Raises InvalidRequest, or ServiceUnavailable if the line
        is full. A stream that goes on from another replica is always taken: it was accepted before, and has had its
        first token in time.
        """
        self._check(request)
        sequence = Sequence(request, is_prefill_only, grammar_state(request, grammar), self._end_token_ids(request))
        sequence.arrived_at = self._clock()
        if not request.emitted_token_ids:
            self._check_line(sequence)
            if request.deadline_s is not None:
                sequence.give_up_at = sequence.arrived_at + request.deadline_s
        self._scheduler.enqueue(sequence)

    def _end_token_ids(self, request: GenerationRequest) -> frozenset[int]:
        """A grammar's end is an end, whatever ignore_eos says."""
        sampling = request.sampling
        ignores = sampling.ignore_eos and sampling.structured_outputs is None
        return frozenset(sampling.stop_token_ids) | (frozenset() if ignores else self._limits.eos_token_ids)

    def _check_line(self, sequence: Sequence) -> None:
        try:
            self._scheduler.check_bounds(sequence.num_tokens)
        except ServiceUnavailable:
            self.totals["refused_requests"] += 1
            raise

    def abort(self, request_id: RequestId) -> bool:
        """End a sequence and take its pages back. False if there is none (it may just have ended)."""
        sequence = self._scheduler.find(request_id)
        if sequence is None:
            return False
        self._scheduler.remove(sequence)
        self._exports.cancel(sequence)
        self.totals["finished_abort"] += 1
        return True

    def _check(self, request: GenerationRequest) -> None:
        check_request(request, self._limits)
        request_id, find = request.request_id, self._scheduler.find
        if find(request_id) is not None or find(request_id, has_ended=True) is not None:
            raise InvalidRequest(f"request id {request_id!r} is in use", "request_id")

    # The step

    def step(self) -> list[TokenOutput]:
        """Plan, launch, land: one pass of the model is sent off, and what one yielded is returned.

        An engine in which a step failed has lost count of what is on its way: it takes no other.

        Without overlap that is the same pass; with it the one before, which ran while this one was planned; with
        several batches the oldest, as soon as all others are on their way:

            plan 1, launch 1 | plan 2, launch 2, land 1 | plan 3, launch 3, land 2 | ...
        """
        assert not self._has_failed, "a step failed before; make a new engine"
        try:
            return self._step()
        except BaseException:
            self._has_failed = True
            for flight in self._flights:
                flight.step.allow(None)  # else the device would wait for it for ever
            raise

    def close(self) -> None:
        """Let the steps on their way end, so that nothing runs any more when its memory goes."""
        while self._flights:
            self._flights.popleft().step.land()

    def _step(self) -> list[TokenOutput]:
        outputs = [self._give_up(sequence) for sequence in self._scheduler.overdue(self._clock())]
        plan = self._scheduler.plan(reserved=self._reserved, is_ahead=bool(self._flights))
        launched = self._launch(plan) if plan is not None and plan.entries else None
        if launched is not None:
            self._flights.append(launched)
        if len(self._flights) > max(self._num_ahead, 1) or (self._flights and launched is None):
            outputs += self._land(self._flights.popleft())
        # Here, since its sequences may have to hear first of the token that the step before said.
        if launched is not None and launched.is_structured:
            launched.step.allow(partial(self._masks, launched.plan))
        if len(self._flights) > self._num_ahead:
            outputs += self._land(self._flights.popleft())
        return outputs

    def _launch(self, plan: StepPlan) -> "_Flight":
        now = self._clock()
        is_structured = False
        for entry in plan.entries:
            sequence = entry.sequence
            if sequence.started_at is None:
                sequence.started_at = now
            if entry.samples and (sequence.grammar is not None or sequence.request.sampling.bad_word_token_ids):
                is_structured = True
        step = self._runner.launch(plan)
        self._num_launches += 1
        if not is_structured:
            step.allow(None)
        self._scheduler.take_off(plan)
        return _Flight(plan, step, is_structured=is_structured)

    def _masks(self, plan: StepPlan) -> GrammarMasks | None:
        """Called by another thread, if the plan's step runs in this one."""
        sampling = [entry for entry in plan.entries if entry.samples]
        rows = [
            StructuredRow(row, entry.sequence.grammar, entry.num_generated, entry.sequence.request.sampling)
            for row, entry in enumerate(sampling)
            if entry.sequence.grammar is not None and not entry.sequence.has_ended
        ]
        return make_masks(rows, self._limits.eos_token_ids) if rows else None

    def _give_up(self, sequence: Sequence) -> TokenOutput:
        """End a sequence that waits for its first token and would get it too late."""
        self._scheduler.remove(sequence)
        self._exports.cancel(sequence)
        self.totals["finished_error"] += 1
        self.totals["overdue_requests"] += 1
        return TokenOutput(
            request_id=sequence.request_id,
            first_index=0,
            token_ids=(),
            finish_reason="error",
            error=f"no turn came within the deadline of {sequence.request.deadline_s:g} s; "
            f"{self.num_waiting} others wait and {self.num_running} run here",
        )

    def _land(self, flight: "_Flight") -> list[TokenOutput]:
        sampled = iter(flight.step.land())
        self.totals["num_steps"] += 1
        if self._kv.tiers is not None and flight.plan.moves is not None:
            self._kv.tiers.settle(flight.plan.moves)
        outputs = []
        for entry in flight.plan.entries:
            sequence = entry.sequence
            token = next(sampled) if entry.samples else None
            if entry.start < sequence.num_prompt_tokens:
                num_prompt_tokens = min(entry.num_new, sequence.num_prompt_tokens - entry.start)
                self.totals["computed_prompt_tokens"] += num_prompt_tokens
            # A logit that is NaN or infinity: neither the token nor the pages behind it hold numbers.
            if not self._scheduler.land(entry, is_sound=token is None or token.logit < inf):
                continue
            if sequence.is_prefill_only:
                self._exports.offer(sequence)
            if token is not None:
                outputs.append(self._append(sequence, token))
            elif sequence.num_computed == sequence.num_tokens:
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
        token_id, logprobs, logit = token
        first_index = len(sequence.token_ids) - sequence.num_prompt_tokens
        if sequence.grammar is not None or not isfinite(logit):
            failure = failure_of(sequence, token)
            if failure is not None:
                return self._break_off(sequence, first_index, failure)
        sequence.token_ids.append(token_id)
        self.totals["generated_tokens"] += 1
        is_stop = token_id in sequence.end_token_ids and self._may_end(sequence, token_id)
        reason = self._finish_reason(sequence, is_stop=is_stop)
        if reason is not None:
            self._finish(sequence, reason)
        output = TokenOutput(
            request_id=sequence.request_id,
            first_index=first_index,
            token_ids=(token_id,),
            finish_reason=reason,
            num_cached_tokens=sequence.num_cached_tokens or 0,
        )
        if logprobs is not None:
            output.logprobs = (logprobs,)
        if is_stop:
            output.stop_token = token_id
        if first_index == len(sequence.request.emitted_token_ids):
            self._count_prompt(sequence)
            output.prompt_logprobs, output.queue_s = read_logprobs(sequence.prompt_reader), _queue_s(sequence)
        return output

    def _break_off(self, sequence: Sequence, first_index: int, failure: AnswerFailure) -> TokenOutput:
        self._finish(sequence, "error")
        return TokenOutput(
            request_id=sequence.request_id,
            first_index=first_index,
            token_ids=(),
            finish_reason="error",
            error=failure.text,
            error_field=failure.field,
        )

    def _may_end(self, sequence: Sequence, token_id: int) -> bool:
        if sequence.grammar is not None and token_id in self._limits.eos_token_ids:
            return True  # the grammar lets an end through, below min_tokens only if nothing else can follow
        return sequence.num_generated >= sequence.request.sampling.min_tokens

    def _finish_reason(self, sequence: Sequence, *, is_stop: bool) -> FinishReason | None:
        if is_stop or (sequence.grammar is not None and sequence.grammar.has_ended):
            return "stop"
        if sequence.num_generated >= sequence.max_tokens:
            return "length"
        return "handed_over" if sequence.is_prefill_only else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        if reason == "handed_over":
            self._exports.finish(sequence)
        else:
            self._exports.cancel(sequence)
        self._scheduler.remove(sequence, is_complete=reason != "error")
        self.totals[f"finished_{reason}"] += 1

    def _count_prompt(self, sequence: Sequence) -> None:
        if sequence.num_cached_tokens is not None:
            self.totals["prompt_tokens"] += sequence.num_prompt_tokens
            self.totals["cached_prompt_tokens"] += sequence.num_cached_tokens

    # Pages that leave for another replica, and that come from one

    def release_exported(self, pages: Many[PageIndex]) -> None:
        """The exporter is done with these pages."""
        self._exports.release(pages)

    def reserve(self, request: GenerationRequest, grammar: Grammar | None = None) -> Sequence:
        """A sequence with pages for all its tokens, to be filled from outside; it does not run yet.

        Its first num_computed tokens are in the prefix cache already. Raises InvalidRequest, or ServiceUnavailable
        if there is no room now, or only room that those in line wait for.
        """
        self._check(request)
        sequence = Sequence(request, False, grammar_state(request, grammar), self._end_token_ids(request))
        sequence.prompt_reader = None  # the prefill side computes the prompt, and so reads it
        if self.num_running + self.num_waiting + len(self._reserved) >= self._max_num_seqs:
            raise ServiceUnavailable(f"all {self._max_num_seqs} places for running sequences are taken")
        # A page arrives whole or not at all: what is held here up to its middle is of no use.
        self._kv.attach_prefix(sequence, can_copy=False)
        num_missing = self._kv.num_missing(sequence)
        num_free = self._kv.num_available - self._scheduler.num_awaited_pages
        if num_missing > num_free:
            self._kv.detach(sequence)
            raise ServiceUnavailable(f"{max(0, num_free)} pages are free, the request needs {num_missing}")
        if not self._scheduler.has_room(sequence, self._reserved):
            self._kv.detach(sequence)
            raise ServiceUnavailable("the free pages are promised to the longest answers of those that run")
        has_grown = self._kv.try_grow(sequence, sequence.num_tokens, fills_in_step=False)
        assert has_grown, f"{sequence.request_id} lacks pages that were counted"
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
        self._scheduler.audit([*reserved, *self._exports.pinned()])


@dataclass(frozen=True, slots=True)
class _Flight:
    """What a step computes, and the step. is_structured: before it samples it waits for the masks of grammars, or until
    sequences with bad words know all their tokens."""

    plan: StepPlan
    step: StepFlight
    is_structured: bool


def _queue_s(sequence: Sequence) -> float | None:
    return None if sequence.started_at is None else sequence.started_at - sequence.arrived_at
