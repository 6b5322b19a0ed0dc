"""The engine under each policy, case by case: who runs, who waits, who gives way."""

import pytest

from kvasir_protocol.errors import InvalidRequest, ServiceUnavailable
from kvasir_protocol.request import GenerationRequest
from kvasir_workers.scheduling_policy import MAX_OVERTAKERS
from tests.unit.workers.engine_house import PAGE_SIZE, House, greedy
from tests.unit.workers.fakes import expected_answer, make_request


def request(name: str, num_tokens: int = 4, *, max_tokens: int = 6, **changes: object) -> GenerationRequest:
    """A prompt that shares no page with others, unless a salt says so."""
    changes = {"salt": name, **changes}
    return make_request(name, [1] * num_tokens, sampling=greedy(max_tokens=max_tokens), **changes)  # type: ignore[arg-type]


def planned(house: House) -> dict[str, int]:
    """How many tokens each got in the next step."""
    num_plans = len(house.runner.plans)
    house.step()
    return {
        entry.sequence.request_id: entry.num_new for plan in house.runner.plans[num_plans:] for entry in plan.entries
    }


def add(house: House, *requests: GenerationRequest) -> None:
    for item in requests:
        house.engine.add(item)


# Priorities


def test_lower_priority_is_admitted_first() -> None:
    house = House(max_num_seqs=1, scheduling_policy="priority")
    add(house, request("late", priority=2), request("soon", priority=1))
    assert list(planned(house)) == ["soon"]


def test_running_sequence_gives_way_to_a_better_one() -> None:
    house = House(max_num_seqs=1, scheduling_policy="priority")
    low, high = request("low", priority=1), request("high", priority=0)
    add(house, low)
    house.step()
    add(house, high)
    assert list(planned(house)) == ["high"]
    house.drain()
    assert [house.tokens(item.request_id) for item in (low, high)] == [expected_answer(i)[0] for i in (low, high)]


def test_pages_of_worse_ones_go_to_a_better_one() -> None:
    house = House(num_pages=5, scheduling_policy="priority")
    add(house, request("low", 8, priority=2), request("lower", 8, priority=3))
    house.step()
    add(house, request("high", 8, priority=0))
    assert sorted(planned(house)) == ["high", "low"]


def test_nobody_gives_way_when_there_is_room() -> None:
    house = House(scheduling_policy="priority")
    add(house, request("low", priority=1))
    house.step()
    add(house, request("high", priority=0))
    assert sorted(planned(house)) == ["high", "low"]
    assert house.engine.counters().num_preemptions == 0


@pytest.mark.parametrize("policy", ["fcfs", "longest-prefix"])
def test_only_priorities_make_running_ones_give_way(policy: str) -> None:
    house = House(max_num_seqs=1, scheduling_policy=policy)
    add(house, request("low", priority=1))
    house.step()
    add(house, request("high", priority=0))
    assert list(planned(house)) == ["low"]


def test_equal_priority_does_not_make_anybody_give_way() -> None:
    house = House(max_num_seqs=1, scheduling_policy="priority")
    add(house, request("first"))
    house.step()
    add(house, request("second"))
    assert list(planned(house)) == ["first"]


def test_worst_priority_is_preempted_when_pages_run_short() -> None:
    house = House(num_pages=4, scheduling_policy="priority")
    add(house, request("low", 8, priority=1))
    house.step()
    add(house, request("high", 7, priority=0))
    house.step()
    house.step()
    assert (house.engine.num_running, house.engine.counters().num_preemptions) == (1, 1)
    assert list(planned(house)) == ["high"]


def test_worse_one_never_runs_while_a_better_one_waits() -> None:
    """Priority inversion: a low one that holds the pages would keep the high one waiting."""
    house = House(num_pages=8, max_num_seqs=2, scheduling_policy="priority")
    requests = [request(f"p{priority}-{n}", 9, priority=priority) for n in range(3) for priority in (2, 0, 1)]
    for item in requests:
        add(house, item)
        planned(house)
        running = {entry.sequence.request.priority for entry in house.runner.plans[-1].entries}
        waiting = {s.request.priority for s in house.engine._scheduler._waiting}
        assert not waiting or max(running) <= min(waiting)
    house.drain()
    assert all(house.tokens(item.request_id) == expected_answer(item)[0] for item in requests)


def test_preempted_answer_is_computed_again_only_where_its_pages_are_gone() -> None:
    house = House(max_num_seqs=1, scheduling_policy="priority")
    add(house, request("low", 9, priority=1))
    house.step()
    house.step()
    add(house, request("high", priority=0, max_tokens=1))
    house.drain()
    assert (house.engine.counters().num_preemptions, house.engine.counters().recomputed_tokens) == (1, 10 - 8)


# Longest prefix


def test_longest_cached_prefix_is_admitted_first() -> None:
    house = House(max_num_seqs=1, scheduling_policy="longest-prefix")
    house.answer(request("warm", 12, salt="shared"))
    add(house, request("cold", 13), request("hot", 13, salt="shared"))
    assert planned(house) == {"hot": 1}


def test_request_without_a_cached_prefix_is_served_though_others_keep_coming() -> None:
    house = House(max_num_seqs=1, scheduling_policy="longest-prefix", max_waiting_requests=None)
    house.answer(request("warm", 12, salt="shared"))
    add(house, request("first", 13, salt="shared"), request("cold", 13))
    for number in range(2 * MAX_OVERTAKERS):
        add(house, request(f"hot-{number}", 13, salt="shared", max_tokens=1))
        house.step()
    assert house.tokens("cold")


# No eviction


def test_no_evict_waits_until_the_longest_answers_fit() -> None:
    house = House(num_pages=6, admission_policy="no-evict")
    add(house, request("a", 4, max_tokens=9), request("b", 4, max_tokens=14))
    assert list(planned(house)) == ["a"]
    house.drain()
    assert house.engine.counters().num_preemptions == 0


def test_max_utilization_lets_both_in_and_preempts() -> None:
    house = House(num_pages=6)
    add(house, request("a", 4, max_tokens=13), request("b", 4, max_tokens=14))
    assert list(planned(house)) == ["a", "b"]
    house.drain()
    assert house.engine.counters().num_preemptions > 0


def test_no_evict_fills_the_pages_to_the_last() -> None:
    house = House(num_pages=6, admission_policy="no-evict")
    add(house, request("a", 4, max_tokens=9), request("b", 4, max_tokens=9))
    assert list(planned(house)) == ["a", "b"]


def test_no_evict_counts_promised_sequences() -> None:
    house = House(num_pages=6, admission_policy="no-evict")
    house.reserve(request("promised", 4, max_tokens=14))
    with pytest.raises(ServiceUnavailable, match="promised to the longest answers"):
        house.reserve(request("another", 4, max_tokens=14))
    add(house, request("a", 4, max_tokens=14))
    assert planned(house) == {}


def test_no_evict_asks_little_of_a_sequence_that_leaves_after_its_first_token() -> None:
    house = House(num_pages=4, admission_policy="no-evict")
    for name in ("a", "b"):
        house.engine.add(request(name, 8, max_tokens=8), is_prefill_only=True)
    assert list(planned(house)) == ["a", "b"]


def test_no_evict_does_not_preempt_for_a_better_priority() -> None:
    house = House(max_num_seqs=1, scheduling_policy="priority", admission_policy="no-evict")
    add(house, request("low", priority=1))
    house.step()
    add(house, request("high", priority=0))
    assert list(planned(house)) == ["low"]


# Long prompts


def test_long_prompt_leaves_room_in_the_step_for_a_short_one() -> None:
    house = House(budget=16, max_prefill_chunk_tokens=6)
    add(house, request("long", 40), request("short", 5))
    assert planned(house) == {"long": 6, "short": 5}
    assert planned(house) == {"short": 1, "long": 6}


def test_long_prompt_that_is_alone_takes_the_whole_step() -> None:
    house = House(budget=16, max_prefill_chunk_tokens=6)
    add(house, request("long", 40))
    assert planned(house) == {"long": 16}


def test_running_answers_get_a_token_in_every_step_of_a_long_prompt() -> None:
    house = House(budget=8, max_prefill_chunk_tokens=3)
    add(house, *(request(f"short-{n}", 2, max_tokens=30) for n in range(3)))
    house.step()
    add(house, request("long", 40))
    plans = [planned(house) for _ in range(13)]
    assert all(plan == {"short-0": 1, "short-1": 1, "short-2": 1, "long": 3} for plan in plans)


# A bounded line


def test_full_line_refuses_with_the_numbers() -> None:
    house = House(max_waiting_requests=2)
    add(house, request("a"), request("b"))
    with pytest.raises(ServiceUnavailable, match="2 requests wait here already, of at most 2"):
        add(house, request("c"))
    assert house.engine.counters().refused_requests == 1


def test_line_full_of_tokens_refuses_with_the_numbers() -> None:
    house = House(max_waiting_tokens=10)
    add(house, request("a", 8))
    with pytest.raises(ServiceUnavailable, match="8 tokens wait here already and the request has 4"):
        add(house, request("b", 4))


def test_line_takes_more_when_it_has_moved() -> None:
    house = House(max_waiting_requests=1)
    add(house, request("a"))
    house.step()
    add(house, request("b"))


def test_stream_that_goes_on_from_elsewhere_is_taken_into_a_full_line() -> None:
    house = House(max_waiting_requests=1)
    add(house, request("a"), request("moved", emitted=[1]))
    assert house.engine.num_waiting == 2


# Deadlines


def test_request_that_waited_too_long_is_ended_with_the_reason() -> None:
    house = House(max_num_seqs=1)
    add(house, request("a"), request("hurried", deadline_s=2.0))
    house.step()
    house.clock.now = 2.0
    (output,) = [output for output in house.step() if output.request_id == "hurried"]
    assert (output.finish_reason, output.token_ids) == ("error", ())
    assert output.error == "no turn came within the deadline of 2 s; 0 others wait and 1 run here"
    counters = house.engine.counters()
    assert (counters.finished_error, counters.overdue_requests) == (1, 1)


def test_overdue_are_ended_even_when_nothing_can_run() -> None:
    house = House(max_num_seqs=1)
    promised = house.reserve(request("promised"))
    add(house, request("hurried", deadline_s=2.0))
    house.clock.now = 3.0
    assert [output.finish_reason for output in house.step()] == ["error"]
    house.engine.release_reserved(promised)
    assert not house.engine.has_work


def test_request_in_time_is_answered() -> None:
    house = House()
    house.clock.now = 100.0
    item = request("hurried", deadline_s=2.0)
    assert house.answer(item) == expected_answer(item)[0]


def test_begun_answer_goes_on_past_its_deadline() -> None:
    house = House()
    item = request("hurried", 30, deadline_s=2.0)
    add(house, item)
    house.step()
    house.clock.now = 3.0
    house.drain()
    assert house.tokens("hurried") == expected_answer(item)[0]


def test_preempted_answer_is_not_ended_by_its_deadline() -> None:
    house = House(max_num_seqs=1, scheduling_policy="priority")
    item = request("hurried", deadline_s=2.0, priority=1)
    add(house, item)
    house.step()
    add(house, request("high", priority=0))
    house.step()
    house.clock.now = 3.0
    house.drain()
    assert house.tokens("hurried") == expected_answer(item)[0]


def test_stream_from_elsewhere_has_had_its_first_token_in_time() -> None:
    house = House(max_num_seqs=1)
    add(house, request("a"), request("moved", emitted=[1], deadline_s=1.0))
    house.clock.now = 5.0
    house.drain()
    assert house.tokens("moved")


def test_hand_over_of_an_overdue_request_is_cancelled() -> None:
    house = House(max_num_seqs=1)
    add(house, request("a"))
    house.engine.add(request("hurried", deadline_s=1.0), is_prefill_only=True)
    house.clock.now = 1.0
    house.step()
    assert house.exporter.cancelled == ["hurried"]


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan")])
def test_deadline_that_is_no_time_is_refused(deadline_s: float) -> None:
    with pytest.raises(InvalidRequest, match="a deadline lies above 0 s"):
        House().engine.add(request("r", deadline_s=deadline_s))


# Shares


def test_quiet_tenant_does_not_wait_behind_a_flood() -> None:
    house = House(max_num_seqs=1, fair_share=True)
    add(house, *(request(f"flood-{n}", tenant="loud") for n in range(5)))
    house.step()
    add(house, request("quiet", tenant="quiet"))
    while not house.tokens("quiet"):
        house.step()
    assert sum(bool(house.tokens(f"flood-{n}")) for n in range(5)) == 1


def test_tenant_that_had_most_is_preempted_first() -> None:
    house = House(num_pages=5, fair_share=True)
    add(house, request("loud", 8, tenant="loud"), request("quiet", 4, tenant="quiet"))
    house.step()
    while not house.engine.counters().num_preemptions:
        house.step()
    assert [s.request_id for s in house.engine._scheduler._waiting] == ["loud"]


def loud_house(**changes: object) -> House:
    """Four places, all of which loud has; more of its requests are in line."""
    house = House(max_num_seqs=4, budget=64, fair_share=True, **changes)  # type: ignore[arg-type]
    add(house, *(request(f"loud{n}", 8, tenant="loud") for n in range(6)))
    house.step()
    return house


def test_tenant_that_runs_nothing_takes_a_place_of_one_that_has_more() -> None:
    house = loud_house()
    add(house, request("quiet", tenant="quiet"))
    assert sorted(planned(house)) == ["loud0", "loud1", "loud2", "quiet"]


def test_displaced_request_computes_less_than_a_page_again_and_says_the_same() -> None:
    house = loud_house()
    add(house, request("quiet", tenant="quiet"))
    house.drain()
    assert house.engine.counters().num_preemptions == 1
    assert house.engine.counters().recomputed_tokens < PAGE_SIZE
    displaced = request("loud3", 8, tenant="loud")
    assert house.tokens("loud3") == expected_answer(displaced)[0]


def test_second_request_of_a_tenant_takes_no_place() -> None:
    house = loud_house()
    add(house, *(request(f"quiet{n}", tenant="quiet") for n in range(2)))
    house.step()
    assert sorted(planned(house)) == ["loud0", "loud1", "loud2", "quiet0"]


def test_only_request_of_a_tenant_keeps_its_place() -> None:
    house = House(max_num_seqs=2, fair_share=True)
    add(house, *(request(name, tenant=name) for name in ("a", "b", "c")))
    house.step()
    assert sorted(planned(house)) == ["a", "b"]


def test_tenant_that_runs_nothing_takes_pages_too() -> None:
    house = House(num_pages=8, max_num_seqs=4, budget=64, fair_share=True)
    add(house, *(request(f"loud{n}", 9, tenant="loud") for n in range(2)))
    house.step()
    add(house, request("quiet", 12, tenant="quiet"))
    assert sorted(planned(house)) == ["loud0", "quiet"]


def test_no_evict_makes_nobody_wait_for_a_tenant_that_runs_nothing() -> None:
    house = loud_house(admission_policy="no-evict")
    add(house, request("quiet", tenant="quiet"))
    assert sorted(planned(house)) == ["loud0", "loud1", "loud2", "loud3"]


def test_step_that_takes_in_such_a_tenant_is_brief_but_never_two_in_a_row() -> None:
    """Others move on by a token, and nobody else is taken in: the step is as short as it can be."""
    house = House(max_num_seqs=8, budget=8, fair_share=True)
    add(house, request("loud0", 40, tenant="loud"))
    house.step()
    add(house, request("loud1", tenant="loud"), request("a", 3, tenant="a"), request("b", 3, tenant="b"))
    assert planned(house) == {"loud0": 1, "a": 3}
    assert planned(house) == {"loud0": 7, "a": 1}
    assert planned(house) == {"loud0": 1, "a": 1, "b": 3}


def test_priority_makes_nobody_of_another_tenant_give_way() -> None:
    house = House(max_num_seqs=1, fair_share=True, scheduling_policy="priority")
    add(house, request("low", priority=1, tenant="a"))
    house.step()
    add(house, request("high", priority=0, tenant="b"))
    assert list(planned(house)) == ["low"]


def test_cached_prompt_tokens_are_not_charged() -> None:
    house = House(fair_share=True)
    counters = house.engine._scheduler._counters
    assert counters is not None
    house.answer(request("a", 12, tenant="a", salt="shared", max_tokens=1))
    before = counters["a"]
    house.answer(request("b", 12, tenant="a", salt="shared", max_tokens=1))
    assert (before, counters["a"] - before) == (12 + 2, 1 + 2)


def test_recomputed_tokens_are_not_charged_again() -> None:
    house = House(num_pages=6, fair_share=True, caches=False)
    counters = house.engine._scheduler._counters
    assert counters is not None
    add(house, request("a", 4, max_tokens=13), request("b", 4, max_tokens=14))
    house.drain()
    assert house.engine.counters().recomputed_tokens > 0
    assert counters[""] == 4 + 4 + 2 * (13 + 14)
