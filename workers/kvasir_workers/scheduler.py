"""Who computes how many tokens in the next step.

There are no phases. Each sequence has tokens that are not computed yet; a step gives each some of the token budget,
so that it catches up: long prompts in chunks, running answers one token at a time.
"""

from bisect import insort
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import PageIndex, RequestId
from kvasir_workers.admission_policy import PageNeed, make_admission_policy
from kvasir_workers.displacement import displaceable, fewest
from kvasir_workers.fair_share import TokenCounters
from kvasir_workers.kv.manager import KvManager, num_held_alone, pages_for, settle_copies, take_restores
from kvasir_workers.kv.offload.moves import Moves
from kvasir_workers.overtaking import overtakers
from kvasir_workers.scheduling_policy import Rank, make_scheduling_policy
from kvasir_workers.sequence import Sequence
from kvasir_workers.step_budget import StepBudget
from kvasir_workers.step_plan import ScheduledSequence, StepPlan
from kvasir_workers.waiting_line import LineBounds, WaitingLine


class Scheduler:
    """Running sequences before waiting ones, each in the order of the policies; preemption by recompute.

    num_batches: so many steps are on their way at once, in none of which a token is taken up that another is to say.
    spare_tokens: of a step's, only for the rest of prompts, so that a few tokens do not make one wait for another step.
    """

    def __init__(self, config: EngineConfig, kv: KvManager, num_batches: int = 1, spare_tokens: int = 0) -> None:
        self._num_batches = num_batches
        self._max_num_seqs = config.max_num_seqs
        self._budget_tokens = config.step_tokens - spare_tokens
        self._spare_tokens = 0 if config.max_prefill_chunk_tokens else spare_tokens
        self._max_chunk_tokens = config.max_prefill_chunk_tokens or self._budget_tokens
        self._kv = kv
        self._policy = make_scheduling_policy(config.scheduling_policy, kv.num_cached_tokens)
        self._admission = make_admission_policy(config.admission_policy)
        self._can_preempt = config.admission_policy != "no-evict"
        self._displaces = self._policy.displaces and self._can_preempt
        weights = {share.tenant: share.weight for share in config.tenant_weights}
        self._counters = TokenCounters(weights) if config.fair_share else None
        self._lets_overtake = config.scheduling_policy == "fcfs" and not config.fair_share
        self._bounds = LineBounds(max_requests=config.max_waiting_requests, max_tokens=config.max_waiting_tokens)
        self._waiting = WaitingLine(self._policy, self._counters)
        self._running: list[Sequence] = []
        self._departing: dict[Sequence, bool] = {}
        self._num_arrived = 0
        self._was_brief = False
        self.num_preemptions = 0
        self.num_recomputed_tokens = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def check_bounds(self, num_new_tokens: int) -> None:
        """Raise ServiceUnavailable if the line is too long for one more with so many tokens."""
        self._bounds.check(len(self._waiting), self._waiting.num_tokens, num_new_tokens)

    def enqueue(self, sequence: Sequence) -> None:
        self._count_arrival(sequence)
        self._waiting.add(sequence)

    def admit_running(self, sequence: Sequence) -> None:
        """Take in a sequence whose pages arrived from another replica."""
        self._count_arrival(sequence)
        self._add_running(sequence)

    def _count_arrival(self, sequence: Sequence) -> None:
        sequence.arrival_index = self._num_arrived
        self._num_arrived += 1

    def find(self, request_id: RequestId, *, has_ended: bool = False) -> Sequence | None:
        """has_ended: look among those that ended, but into whose pages a step on its way may still write."""
        among = self._departing if has_ended else self._running
        found = next((sequence for sequence in among if sequence.request_id == request_id), None)
        return found if has_ended else found or self._waiting.find(request_id)

    def remove(self, sequence: Sequence, *, is_complete: bool = False) -> None:
        """Forget a sequence that ended and take its pages back, as soon as no step writes into them.

        is_complete: what it has computed stays in the cache up to its last token.
        """
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.has_ended = True
        self._departing[sequence] = is_complete
        if not sequence.num_in_flight:
            self._let_go(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        if self._departing.pop(sequence):
            self._kv.publish_last(sequence)
        self._kv.detach(sequence)

    def take_off(self, plan: StepPlan) -> None:
        """The step is on its way: what it computes need not be planned again."""
        for entry in plan.entries:
            sequence = entry.sequence
            sequence.num_in_flight += entry.num_new
            if entry.samples:
                sequence.num_coming += 1

    def land(self, entry: ScheduledSequence, *, is_sound: bool = True) -> bool:
        """The sequence's part of a step is done: its full pages become READY, and its tenant is charged for a token.

        is_sound=False: what it computed is no numbers, and is not to be read by anybody. False is returned if the
        sequence has ended before.
        """
        sequence = entry.sequence
        sequence.num_in_flight -= entry.num_new
        if entry.samples:
            sequence.num_coming -= 1
        if sequence.has_ended:
            if not sequence.num_in_flight:
                self._let_go(sequence)
            return False
        sequence.num_computed += entry.num_new
        if is_sound:
            self._kv.publish_computed(sequence)
        if self._counters is not None and entry.samples:
            self._counters.charge(sequence.request.tenant, num_output=1)
        return True

    def overdue(self, now: float) -> list[Sequence]:
        """Waiting sequences that should have had their first token by now."""
        return self._waiting.overdue(now)

    @property
    def num_awaited_pages(self) -> int:
        """What the first in line needs, so that nobody who comes later takes it away."""
        first = self._waiting.first()
        return self._kv.num_missing(first) if first is not None else 0

    def plan(self, *, reserved: Collection[Sequence] = (), is_ahead: bool = False) -> StepPlan | None:
        """Choose the next step and give every chosen sequence the pages that it needs for it.

        reserved: sequences whose pages are still on their way, each with the promise of a place. is_ahead: a step is
        on its way; None if somebody would have to give up pages that it may be writing into: ask again when it landed.
        """
        # The worst last: whoever is preempted in this step was not given anything in it yet.
        if self._counters is not None:
            self._running.sort(key=self._rank)
        if self._displaces and not self._make_way(reserved, is_ahead=is_ahead):
            return None
        guest = self._guest()
        has_room = guest is not None and self._make_way_for(guest, reserved, is_ahead=is_ahead)
        if has_room is None:
            return None
        guests = [guest] if guest is not None and has_room else self._overtakers(reserved)
        # A brief step serves the guests, and others move on by a token; never two in a row: prompts have to go on.
        is_brief = bool(guests) and bool(self._running) and not self._was_brief
        num_preemptions = self.num_preemptions
        budget = StepBudget(self._budget_tokens, 0 if is_brief else self._spare_tokens)
        entries = self._plan_running(budget, 1 if is_brief else self._chunk_tokens(), is_ahead=is_ahead)
        if entries is None:
            return None
        turns = iter(guests) if is_brief else chain(guests, self._waiting.in_turn())
        newcomers = self._plan_waiting(turns, budget, reserved) if self.num_preemptions == num_preemptions else []
        entries += newcomers
        self._was_brief = is_brief
        single = [entry for entry in entries if entry.num_new == 1]
        if len(single) < len(entries):
            single += [entry for entry in entries if entry.num_new != 1]
        copies = settle_copies(self._kv, [entry.sequence for entry in newcomers])
        return StepPlan(tuple(single), copies, self._moves(entries))

    def _moves(self, entries: list[ScheduledSequence]) -> Moves | None:
        tiers = self._kv.tiers
        if tiers is None or not entries:
            return None
        return tiers.issue(take_restores(entry.sequence for entry in entries), [entry.num_new for entry in entries])

    def _add_running(self, sequence: Sequence) -> None:
        """Where its rank is; with shares of tenants ranks change, and are looked at for each step."""
        insort(self._running, sequence, key=self._policy.rank)

    def _rank(self, sequence: Sequence) -> tuple[float, Rank]:
        served = self._counters[sequence.request.tenant] if self._counters is not None else 0.0
        return served, self._policy.rank(sequence)

    def _make_way(self, reserved: Collection[Sequence], *, is_ahead: bool) -> bool:
        """Running sequences that the first in line outranks wait, until there is room for it. False: not now.

        Nobody makes way for one that awaits what another computes. It may be the one who was preempted: asked anew.
        """
        while self._running and (first := self._first_to_compute()) is not None:
            if not self._may_displace(first, self._running[-1]):
                break
            if self._has_place(reserved) and self._would_fit(first, reserved):
                break
            if is_ahead:
                return False
            self._preempt(self._running[-1])
        return True

    def _guest(self) -> Sequence | None:
        """With fair shares: the first in line of a tenant that runs nothing and was served no more than any in line."""
        if self._counters is None:
            return None
        guest = self._waiting.first_of_tenant_outside({sequence.request.tenant for sequence in self._running})
        return guest if guest is not None and not self._kv.awaits_others(guest) else None

    def _overtakers(self, reserved: Collection[Sequence]) -> list[Sequence]:
        """Short prompts for other replicas behind a long one; nobody while the first in line lacks room.

        Who awaits what a long one computes does not hold it up.
        """
        if not self._lets_overtake or not self._has_place(reserved):
            return []
        shorter = overtakers(self._running, self._waiting, self._budget_tokens)
        found = [sequence for sequence in shorter if not self._kv.awaits_others(sequence)]
        if not found:
            return []
        first = self._first_to_compute()
        return found if first is not None and self._would_fit(first, reserved) else []

    def _make_way_for(self, guest: Sequence, reserved: Collection[Sequence], *, is_ahead: bool) -> bool | None:
        """Whether the guest has a place and pages, now that others wait for it if need be. None: not now."""
        others = displaceable(self._running) if self._can_preempt else []
        self._kv.attach_prefix(guest, can_copy=False)
        number = fewest(len(others), lambda number: self._has_room_without(set(others[:number]), guest, reserved))
        self._kv.detach(guest)
        if number is None:
            return False
        if number and is_ahead:
            return None
        for sequence in others[:number]:
            self._preempt(sequence)
        return True

    def _has_room_without(self, others: set[Sequence], guest: Sequence, reserved: Collection[Sequence]) -> bool:
        """Whether the guest, its cached pages in hand, has a place and pages when the others have given up theirs.

        What those who stay need for this step is theirs.
        """
        inside = [*(sequence for sequence in self._running if sequence not in others), *reserved]
        num_available = self._kv.num_available + num_held_alone(self._kv, others)
        num_available -= sum(self._kv.num_missing(sequence) for sequence in inside)
        return len(inside) < self._max_num_seqs and self._admits(guest, inside, num_available)

    def _first_to_compute(self) -> Sequence | None:
        return next((s for s in self._waiting.in_turn() if not self._kv.awaits_others(s)), None)

    def _may_displace(self, newcomer: Sequence, running: Sequence) -> bool:
        """Between tenants shares decide, not what a tenant says of its own requests."""
        if self._counters is not None and newcomer.request.tenant != running.request.tenant:
            return False
        return self._policy.outranks(newcomer, running)

    def _has_place(self, reserved: Collection[Sequence]) -> bool:
        return len(self._running) + len(reserved) < self._max_num_seqs

    def _would_fit(self, sequence: Sequence, reserved: Collection[Sequence]) -> bool:
        self._kv.attach_prefix(sequence, can_copy=False)
        fits = self.has_room(sequence, reserved)
        self._kv.detach(sequence)
        return fits

    def _plan_running(self, budget: StepBudget, chunk: int, *, is_ahead: bool) -> list[ScheduledSequence] | None:
        """Each gets what it lacks, up to chunk tokens, but leaves a token of the budget for everyone behind it.

        Returns the part of the step; None if somebody would have to be preempted.
        """
        entries: list[ScheduledSequence] = []
        page_size = self._kv.page_size
        index = 0
        share = -(-len(self._running) // self._num_batches)
        while index < len(self._running) and budget.left > 0 and len(entries) < share:
            sequence = self._running[index]
            index += 1
            num_pending = sequence.num_pending
            if num_pending == 0 or sequence.is_ending or (sequence.num_coming and self._num_batches > 1):
                continue
            num_new = 1 if num_pending == 1 else budget.share(num_pending, chunk, len(self._running) - index)
            start = sequence.num_computed + sequence.num_in_flight
            has_pages = start + num_new <= len(sequence.pages) * page_size
            while not has_pages and not self._kv.try_grow(sequence, start + num_new):
                if is_ahead:
                    return None
                last = self._running[-1]
                self._preempt(last)
                if last is sequence:
                    return entries
            samples = num_new == num_pending and sequence.request.pooling is None
            entries.append(ScheduledSequence(sequence, start, num_new, samples))
            if num_new > 1:
                budget.take(num_new, len(self._running) - index)
            else:  # nearly everyone's share: a call for each would count
                budget.left -= 1
        return entries

    def _chunk_tokens(self) -> int:
        """At most so many tokens of one sequence in a step, if it is not alone."""
        is_alone = len(self._running) + len(self._waiting) <= 1
        return self._budget_tokens if is_alone else self._max_chunk_tokens

    def _preempt(self, sequence: Sequence) -> None:
        """A running sequence gives up its pages and waits; full ones stay cached for now."""
        self._running.remove(sequence)
        assert not sequence.num_in_flight, f"{sequence.request_id} is preempted in flight"
        sequence.num_lost_tokens = sequence.num_computed
        self._kv.detach(sequence)
        self._waiting.add(sequence)
        self.num_preemptions += 1

    def _plan_waiting(
        self, turns: Iterator[Sequence], budget: StepBudget, reserved: Collection[Sequence]
    ) -> list[ScheduledSequence]:
        entries: list[ScheduledSequence] = []
        while budget.left > 0 and self._has_place(reserved) and (sequence := next(turns, None)) is not None:
            if self._kv.awaits_others(sequence):
                continue  # it holds nothing and nobody up: those behind it may go first
            num_new = self._place(sequence, budget, reserved)
            if num_new == 0:
                break
            self._admit(sequence)
            samples = num_new == sequence.num_pending and sequence.request.pooling is None
            entries.append(ScheduledSequence(sequence, sequence.num_computed, num_new, samples))
            budget.take(num_new)
        return entries

    def _place(self, sequence: Sequence, budget: StepBudget, reserved: Collection[Sequence]) -> int:
        """How many tokens it computes first, its pages in hand; 0 (and it holds nothing) if there is no room.

        A copied page costs room twice for a step: if that is too much, it is computed after all.
        """
        for can_copy in (True, False):
            self._kv.attach_prefix(sequence, can_copy=can_copy, can_restore=True)
            num_new = budget.share(sequence.num_pending, self._chunk_tokens())
            if self._fits(sequence, num_new, reserved):
                self._kv.announce(sequence)
                return num_new
            has_copy = sequence.copy_source is not None
            self._kv.detach(sequence)
            if not has_copy:
                break
        return 0

    def _fits(self, sequence: Sequence, num_new: int, reserved: Collection[Sequence]) -> bool:
        # Asked first: growing evicts cached pages, for nothing if the rest does not fit.
        return self.has_room(sequence, reserved) and self._kv.try_grow(sequence, sequence.num_computed + num_new)

    def has_room(self, newcomer: Sequence, reserved: Collection[Sequence]) -> bool:
        """Whether the admission policy lets a newcomer in beside those that run and those that are promised a place."""
        return self._admits(newcomer, chain(self._running, reserved), self._kv.num_available)

    def _admits(self, newcomer: Sequence, inside: Iterable[Sequence], num_available: int) -> bool:
        return self._admission.admits(self._need(newcomer), map(self._need, inside), num_available)

    def _need(self, sequence: Sequence) -> PageNeed:
        final = pages_for(sequence.num_final_tokens, self._kv.page_size) - len(sequence.pages)
        return PageNeed(known=self._kv.num_missing(sequence), final=final)

    def _admit(self, sequence: Sequence) -> None:
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = min(sequence.num_computed, sequence.num_prompt_tokens)
            if self._counters is not None:
                num_input = sequence.num_prompt_tokens - sequence.num_cached_tokens
                self._counters.charge(sequence.request.tenant, num_input=num_input)
        self.num_recomputed_tokens += max(0, sequence.num_lost_tokens - sequence.num_computed)
        sequence.num_lost_tokens = 0
        self._waiting.remove(sequence)
        self._add_running(sequence)

    def audit(self, other_holders: list[PageIndex]) -> None:
        """Check that pages, sequences and other holders agree. Raises AssertionError."""
        sequences = [*self._running, *self._waiting, *self._departing]
        for sequence in self._departing:
            assert sequence.num_in_flight, f"{sequence.request_id} has ended but keeps its pages"
        for sequence in self._waiting:
            assert not sequence.num_in_flight, f"{sequence.request_id} waits in flight"
            assert not sequence.pages, f"{sequence.request_id} waits but holds pages"
            assert sequence.copy_source is None, f"{sequence.request_id} waits but holds a page to copy"
            assert not sequence.restored_from, f"{sequence.request_id} waits but holds pages to restore"
        for sequence in sequences:
            has_left = sequence.num_computed < sequence.num_tokens or sequence.has_ended
            assert has_left, f"{sequence.request_id}: nothing left to compute"
            assert sequence.num_computed <= len(sequence.pages) * self._kv.page_size, f"{sequence.request_id}: no page"
        self._waiting.audit()
        computers = self._kv.in_flight.computers()
        assert computers <= {s.request_id for s in (*self._running, *self._departing)}, (
            f"{computers} are waited for but do not run"
        )
        self._kv.audit([*(page for sequence in sequences for page in sequence.held_pages), *other_holders])
