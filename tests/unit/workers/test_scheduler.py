"""Plans without a model: who gets how many tokens, and that everybody gets there."""

import random

import pytest

from kvasir_protocol.config import EngineConfig
from kvasir_workers.kv.manager import KvManager
from kvasir_workers.scheduler import Scheduler
from kvasir_workers.sequence import Sequence
from kvasir_workers.step_plan import StepPlan
from tests.unit.workers.fakes import make_request

PAGE_SIZE = 4


class Bench:
    """A scheduler and the hands that it needs: `step` plans, computes and appends a token where one is sampled."""

    def __init__(
        self, *, num_pages: int = 100, max_num_seqs: int = 8, budget: int = 16, spare: int = 0, chunk: int | None = None
    ) -> None:
        """spare: beyond the budget."""
        self.kv = KvManager(num_pages, PAGE_SIZE)
        config = EngineConfig(
            page_size=PAGE_SIZE,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget + spare,
            max_prefill_chunk_tokens=chunk,
        )
        self.scheduler = Scheduler(config, self.kv, spare_tokens=spare)
        self.num_made = 0
        self.answered: list[str] = []

    def enqueue(self, num_tokens: int, max_tokens: int = 100, first_token: int | None = None) -> Sequence:
        """A prompt unlike all others, or (with first_token) like the others of the same first token."""
        self.num_made += 1
        start = 100 * self.num_made if first_token is None else first_token
        prompt = range(start, start + num_tokens)
        sequence = Sequence(make_request(f"s{self.num_made}", prompt, max_tokens=max_tokens))
        self.scheduler.enqueue(sequence)
        return sequence

    def enqueue_for_another(self, num_tokens: int, first_token: int | None = None) -> Sequence:
        """A prompt whose pages leave with its first token; first_token: as for enqueue."""
        self.num_made += 1
        start = 100 * self.num_made if first_token is None else first_token
        request = make_request(f"s{self.num_made}", range(start, start + num_tokens), max_tokens=1)
        sequence = Sequence(request, is_prefill_only=True)
        self.scheduler.enqueue(sequence)
        return sequence

    def plan(self) -> dict[str, int]:
        """How many tokens each gets; nothing is computed."""
        return self.described(self.scheduler.plan())

    def described(self, plan: StepPlan | None) -> dict[str, int]:
        assert plan is not None, "nothing is in flight, so that anybody may give way"
        return {entry.sequence.request_id: entry.num_new for entry in plan.entries}

    def step(self) -> dict[str, int]:
        plan = self.scheduler.plan()
        described = self.described(plan)
        assert plan is not None
        self.scheduler.take_off(plan)
        for entry in plan.entries:
            sequence = entry.sequence
            assert self.scheduler.land(entry)
            if entry.samples:
                sequence.token_ids.append(1)
                if sequence.num_generated >= sequence.request.max_tokens:
                    self.scheduler.remove(sequence)
                    self.answered.append(sequence.request_id)
        self.scheduler.audit([])
        return described


def test_prompts_are_computed_whole_if_the_budget_allows() -> None:
    bench = Bench(budget=16)
    bench.enqueue(7)
    bench.enqueue(9)
    assert bench.plan() == {"s1": 7, "s2": 9}


def test_long_prompt_is_computed_in_chunks() -> None:
    bench = Bench(budget=8)
    bench.enqueue(19)
    assert [bench.step()["s1"] for _ in range(4)] == [8, 8, 3, 1]


def test_rest_of_a_prompt_that_spare_tokens_hold_needs_no_step_of_its_own() -> None:
    bench = Bench(budget=8, spare=2)
    bench.enqueue(18)
    bench.enqueue(9)
    assert [bench.step() for _ in range(3)] == [{"s1": 8}, {"s1": 10}, {"s1": 1, "s2": 9}]


def test_prompt_that_spare_tokens_do_not_complete_gets_none() -> None:
    bench = Bench(budget=8, spare=2)
    bench.enqueue(11)
    assert [bench.step()["s1"] for _ in range(2)] == [8, 3]


def test_spare_tokens_are_there_once_a_step() -> None:
    bench = Bench(budget=8, spare=2)
    for _ in range(3):
        bench.enqueue(5)
    assert [bench.step() for _ in range(2)] == [{"s1": 5, "s2": 5}, {"s1": 1, "s2": 1, "s3": 5}]


def test_longest_chunk_that_was_asked_for_is_not_exceeded_by_spare_tokens() -> None:
    bench = Bench(budget=8, spare=2, chunk=4)
    for _ in range(2):
        bench.enqueue(5)
    assert bench.plan() == {"s1": 4, "s2": 4}


def test_what_is_left_of_the_budget_goes_to_the_next_in_line() -> None:
    bench = Bench(budget=10)
    bench.enqueue(7)
    bench.enqueue(7)
    assert bench.plan() == {"s1": 7, "s2": 3}


def test_running_come_before_waiting() -> None:
    bench = Bench(budget=8)
    bench.enqueue(12)
    bench.step()
    bench.enqueue(12)
    assert bench.plan() == {"s1": 4, "s2": 4}


def test_everybody_gets_a_token_beside_a_long_chunk() -> None:
    bench = Bench(budget=8)
    bench.enqueue(30)
    bench.step()
    for _ in range(3):
        bench.scheduler.admit_running(Sequence(make_request(f"short{bench.num_made}", [1])))
        bench.num_made += 1
    assert list(bench.plan().values()) == [1, 1, 1, 5]


def test_single_tokens_come_first_in_the_plan() -> None:
    bench = Bench(budget=16)
    bench.enqueue(6)
    bench.enqueue(1)
    bench.enqueue(5)
    bench.enqueue(1)
    assert list(bench.plan()) == ["s2", "s4", "s1", "s3"]


def test_no_more_than_max_num_seqs_run() -> None:
    bench = Bench(max_num_seqs=2)
    for _ in range(4):
        bench.enqueue(3)
    assert (bench.plan(), bench.scheduler.num_waiting) == ({"s1": 3, "s2": 3}, 2)


def promised(num_places: int) -> list[Sequence]:
    """Sequences whose pages are on their way."""
    return [Sequence(make_request(f"promised-{number}", [1])) for number in range(num_places)]


def test_reserved_places_are_kept_free() -> None:
    bench = Bench(max_num_seqs=3)
    for _ in range(4):
        bench.enqueue(3)
    assert len(bench.scheduler.plan(reserved=promised(2)).entries) == 1


def test_newcomer_waits_until_all_its_known_tokens_fit() -> None:
    bench = Bench(num_pages=5, budget=8)
    bench.enqueue(8, max_tokens=2)
    bench.enqueue(16)
    assert bench.plan() == {"s1": 8}


def test_newcomer_that_does_not_fit_yet_drives_nothing_out_of_the_cache() -> None:
    bench = Bench(num_pages=8, budget=8)
    bench.enqueue(12, max_tokens=1)
    bench.step()
    bench.step()
    bench.enqueue(18)
    for _ in range(3):
        bench.step()
    bench.enqueue(30)
    bench.plan()
    assert (bench.kv.pool.num_free, bench.kv.tree.num_idle) == (0, 3)


def test_nobody_overtakes_the_first_in_line() -> None:
    bench = Bench(num_pages=4, budget=8)
    bench.enqueue(8)
    bench.enqueue(12)
    bench.enqueue(1)
    assert bench.plan() == {"s1": 8}


def squeezed() -> tuple[Bench, Sequence, Sequence]:
    """Two sequences that fill the pool: the next step of the first needs a page of the second."""
    bench = Bench(num_pages=4)
    first, second = bench.enqueue(8), bench.enqueue(7)
    bench.step()
    return bench, first, second


def test_short_prompt_for_another_replica_overtakes_long_ones_in_a_brief_step() -> None:
    bench = Bench(budget=16)
    for num_tokens in (40, 40, 3):
        bench.enqueue_for_another(num_tokens)
    assert [bench.step() for _ in range(3)] == [{"s1": 16}, {"s1": 1, "s3": 3}, {"s1": 16}]


def test_long_prompt_gets_every_other_step_however_many_overtake_it() -> None:
    bench = Bench(budget=16)
    bench.enqueue_for_another(60)
    bench.step()
    steps = []
    while "s1" not in bench.answered:
        bench.enqueue_for_another(3)
        steps.append(bench.step()["s1"])
    assert steps == [1, 16, 1, 16, 1, 9]


def test_nobody_overtakes_a_prompt_for_another_replica_that_waits_for_pages() -> None:
    bench = Bench(budget=16, num_pages=12)
    for num_tokens in (40, 40, 3):
        bench.enqueue_for_another(num_tokens)
    assert [bench.step() for _ in range(3)] == [{"s1": 16}, {"s1": 16}, {"s1": 8}]


def test_long_prompt_is_not_held_up_for_who_awaits_what_it_computes() -> None:
    bench = Bench(budget=32)
    bench.enqueue_for_another(26)
    bench.enqueue_for_another(90, first_token=500)
    bench.enqueue_for_another(25, first_token=500)
    bench.enqueue_for_another(60)
    assert [bench.step() for _ in range(3)] == [{"s1": 26, "s2": 6}, {"s2": 32}, {"s2": 1, "s3": 1}]


def test_prompts_of_an_engines_own_streams_are_computed_in_turn() -> None:
    bench = Bench(budget=16)
    for num_tokens in (40, 3):
        bench.enqueue(num_tokens)
    assert [bench.step() for _ in range(3)] == [{"s1": 16}, {"s1": 16}, {"s1": 8, "s2": 3}]


def test_prompts_of_both_kinds_share_a_brief_step_in_which_those_that_stay_get_a_token_or_wait() -> None:
    bench = Bench(budget=16, chunk=8)
    bench.enqueue(30)
    bench.enqueue_for_another(40)
    bench.enqueue(2)
    bench.enqueue_for_another(3)
    assert [bench.step() for _ in range(3)] == [{"s1": 8, "s2": 8}, {"s1": 1, "s2": 1, "s4": 3}, {"s1": 8, "s2": 8}]


def test_last_running_sequence_is_preempted() -> None:
    bench, first, second = squeezed()
    assert bench.plan() == {first.request_id: 1}
    assert (second.pages, bench.scheduler.num_waiting, bench.scheduler.num_preemptions) == ([], 1, 1)


def test_nobody_is_admitted_in_a_step_that_preempts() -> None:
    bench, first, _ = squeezed()
    bench.enqueue(1)
    assert list(bench.plan()) == [first.request_id]


def test_preempted_sequence_is_first_in_line() -> None:
    bench, first, second = squeezed()
    bench.enqueue(1)
    bench.step()
    bench.scheduler.remove(first)
    one_place = bench.scheduler.plan(reserved=promised(7))
    assert [entry.sequence for entry in one_place.entries] == [second]


def test_preempted_sequence_keeps_its_cached_prefix() -> None:
    bench, first, second = squeezed()
    bench.step()
    bench.scheduler.remove(first)
    assert bench.plan() == {second.request_id: 8 - 4}


def test_sequence_alone_may_preempt_itself_and_comes_back() -> None:
    bench = Bench(num_pages=3)
    sequence = bench.enqueue(8)
    bench.step()
    held = bench.kv.pool.take(1, "a hand-over")
    assert bench.plan() == {}
    bench.kv.release(held)
    assert bench.plan() == {sequence.request_id: 9 - 8}


def test_cached_tokens_of_the_first_admission_are_remembered() -> None:
    bench = Bench()
    bench.enqueue(9, max_tokens=1, first_token=5)
    bench.step()
    second = bench.enqueue(9, first_token=5)
    bench.step()
    assert second.num_cached_tokens == 8


def test_removed_sequence_gives_its_pages_back() -> None:
    bench = Bench()
    sequence = bench.enqueue(9)
    bench.step()
    bench.scheduler.remove(sequence)
    assert (bench.kv.num_used, bench.scheduler.find(sequence.request_id)) == (0, None)


def test_pages_of_the_first_in_line_are_counted() -> None:
    bench = Bench()
    assert bench.scheduler.num_awaited_pages == 0
    bench.enqueue(9)
    assert bench.scheduler.num_awaited_pages == 3


def test_audit_finds_a_waiting_sequence_with_pages() -> None:
    bench = Bench()
    sequence = bench.enqueue(4)
    bench.kv.try_grow(sequence, 4)
    with pytest.raises(AssertionError, match="s1 waits but holds pages"):
        bench.scheduler.audit([])


@pytest.mark.parametrize("seed", range(20))
def test_every_request_is_answered_whatever_arrives(seed: int) -> None:
    """Random arrivals in a pool that holds little more than one sequence; budgets and places from one upwards."""
    rng = random.Random(seed)
    max_num_seqs = rng.randint(1, 6)
    budget = rng.randint(max_num_seqs, 12)
    num_pages = rng.randint(6, 10)
    spare = rng.choice([0, 0, 1, 3])
    bench = Bench(num_pages=num_pages, max_num_seqs=max_num_seqs, budget=budget, spare=spare)
    steps_left = 3000
    while bench.num_made < 25 or bench.scheduler.num_running + bench.scheduler.num_waiting:
        if bench.num_made < 25 and rng.random() < 0.3:
            max_tokens = rng.randint(1, 8)
            shared = rng.choice([None, 5])
            bench.enqueue(rng.randint(1, num_pages * PAGE_SIZE - max_tokens), max_tokens, shared)
        planned = bench.step()
        assert sum(planned.values()) <= budget + spare
        assert bench.scheduler.num_running <= max_num_seqs
        steps_left -= 1
        assert steps_left, f"only {len(bench.answered)} of {bench.num_made} were answered"
    assert len(bench.answered) == 25


@pytest.mark.parametrize("seed", range(5))
def test_request_runs_once_promised_pages_are_given_back(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(num_pages=8)
    promised = [bench.kv.pool.take(rng.randint(1, 3), "a hand-over") for _ in range(2)]
    sequence = bench.enqueue(28, max_tokens=2)
    for _ in range(10):
        assert bench.plan() == {}
    for pages in promised:
        bench.kv.release(pages)
    assert bench.plan() == {sequence.request_id: 16}
