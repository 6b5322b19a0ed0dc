"""Who computes how many tokens in the next step.

There are no phases. Each sequence has tokens that are not computed yet; a step gives each some of the token budget,
so that it catches up: long prompts in chunks, running answers one token at a time.
"""

from collections import deque
from dataclasses import dataclass
from itertools import chain

from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import PageIndex, RequestId
from kvasir_workers.kv.manager import KvManager, PageCopy
from kvasir_workers.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """num_new of the sequence's pending tokens are computed in this step."""

    sequence: Sequence
    num_new: int

    @property
    def samples(self) -> bool:
        """The step reaches the sequence's last token, so that it yields a new one."""
        return self.num_new == self.sequence.num_pending


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Sequences with a single new token come first (the attention kernels count on it).

    copies are made before anything is computed.
    """

    entries: tuple[ScheduledSequence, ...]
    copies: tuple[PageCopy, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(entry.num_new for entry in self.entries)


class Scheduler:
    """First come, first served; running sequences before waiting ones; preemption by recompute."""

    def __init__(self, config: EngineConfig, kv: KvManager) -> None:
        self._max_num_seqs = config.max_num_seqs
        self._budget_tokens = config.max_num_batched_tokens
        self._kv = kv
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def enqueue(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def admit_running(self, sequence: Sequence) -> None:
        """Take in a sequence whose pages arrived from another replica."""
        self._running.append(sequence)

    def find(self, request_id: RequestId) -> Sequence | None:
        return next((s for s in chain(self._running, self._waiting) if s.request_id == request_id), None)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended and take its pages back."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._kv.detach(sequence)

    @property
    def num_awaited_pages(self) -> int:
        """What the first in line needs, so that nobody who comes later takes it away."""
        return self._kv.num_missing(self._waiting[0]) if self._waiting else 0

    def plan(self, *, num_reserved: int = 0) -> StepPlan:
        """Choose the next step and give every chosen sequence the pages that it needs for it.

        num_reserved: places that are promised to sequences whose pages are still on their way.
        """
        entries, budget, has_preempted = self._plan_running()
        if not has_preempted:
            entries += self._plan_waiting(budget, self._max_num_seqs - num_reserved)
        entries.sort(key=lambda entry: entry.num_new != 1)
        return StepPlan(tuple(entries), self._kv.copies_of(entry.sequence for entry in entries))

    def _plan_running(self) -> tuple[list[ScheduledSequence], int, bool]:
        """Each gets what it lacks, but leaves a token of the budget for everyone behind it."""
        entries: list[ScheduledSequence] = []
        budget = self._budget_tokens
        has_preempted = False
        index = 0
        while index < len(self._running) and budget > 0:
            sequence = self._running[index]
            num_later = len(self._running) - index - 1
            num_new = min(sequence.num_pending, max(1, budget - num_later))
            while not self._kv.try_grow(sequence, sequence.num_computed + num_new):
                has_preempted = True
                if self._preempt_last() is sequence:
                    return entries, budget, has_preempted
            entries.append(ScheduledSequence(sequence, num_new))
            budget -= num_new
            index += 1
        return entries, budget, has_preempted

    def _preempt_last(self) -> Sequence:
        """The running sequence that came last gives up its pages and waits, first in line."""
        sequence = self._running.pop()
        self._kv.detach(sequence)
        self._waiting.appendleft(sequence)
        self.num_preemptions += 1
        return sequence

    def _plan_waiting(self, budget: int, num_places: int) -> list[ScheduledSequence]:
        entries: list[ScheduledSequence] = []
        for sequence in list(self._waiting):
            if budget == 0 or len(self._running) >= num_places:
                break
            if self._kv.awaits_others(sequence):
                continue  # it holds nothing and nobody up: those behind it may go first
            num_new = self._place(sequence, budget)
            if num_new == 0:
                break
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = min(sequence.num_computed, sequence.num_prompt_tokens)
            self._waiting.remove(sequence)
            self._running.append(sequence)
            entries.append(ScheduledSequence(sequence, num_new))
            budget -= num_new
        return entries

    def _place(self, sequence: Sequence, budget: int) -> int:
        """How many tokens it computes first, its pages in hand; 0 (and it holds nothing) if there is no room.

        A copied page costs room twice for a step: if that is too much, it is computed after all.
        """
        for can_copy in (True, False):
            self._kv.attach_prefix(sequence, can_copy=can_copy)
            num_new = min(sequence.num_pending, budget)
            if self._fits(sequence, num_new):
                self._kv.announce(sequence)
                return num_new
            has_copy = sequence.copy_source is not None
            self._kv.detach(sequence)
            if not has_copy:
                break
        return 0

    def _fits(self, sequence: Sequence, num_new: int) -> bool:
        """Room for the whole of what is known, not only for the first chunk: else newcomers evict each other."""
        if self._kv.num_missing(sequence) > self._kv.num_available:
            return False
        return self._kv.try_grow(sequence, sequence.num_computed + num_new)

    def audit(self, other_holders: list[PageIndex]) -> None:
        """Check that pages, sequences and other holders agree. Raises AssertionError."""
        sequences = [*self._running, *self._waiting]
        for sequence in self._waiting:
            assert not sequence.pages, f"{sequence.request_id} waits but holds pages"
            assert sequence.copy_source is None, f"{sequence.request_id} waits but holds a page to copy"
        for sequence in sequences:
            assert 0 <= sequence.num_computed < sequence.num_tokens, f"{sequence.request_id}: nothing left to compute"
            assert sequence.num_computed <= len(sequence.pages) * self._kv.page_size, f"{sequence.request_id}: no page"
        computers = self._kv.in_flight.computers()
        assert computers <= {s.request_id for s in self._running}, f"{computers} are waited for but do not run"
        self._kv.audit([*(page for sequence in sequences for page in sequence.held_pages), *other_holders])
