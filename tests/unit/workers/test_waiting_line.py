"""The line of those that wait: its order, its bounds, its deadlines."""

import pytest

from kvasir_protocol.errors import ServiceUnavailable
from kvasir_workers.fair_share import TokenCounters
from kvasir_workers.scheduling_policy import FirstComeFirstServed, PriorityFirst, SchedulingPolicy
from kvasir_workers.sequence import Sequence
from kvasir_workers.waiting_line import LineBounds, WaitingLine
from tests.unit.workers.fakes import make_request


class Arrivals:
    """A line and those who come to it; every name is a tenant's letter and a number."""

    def __init__(self, policy: SchedulingPolicy | None = None, counters: TokenCounters | None = None) -> None:
        self.line = WaitingLine(policy or FirstComeFirstServed(), counters)
        self.num_arrived = 0

    def add(self, name: str, num_tokens: int = 1, **changes: object) -> Sequence:
        sequence = Sequence(make_request(name, [1] * num_tokens, tenant=name[0], **changes))
        sequence.arrival_index = self.num_arrived
        self.num_arrived += 1
        self.line.add(sequence)
        self.line.audit()
        return sequence

    def names(self) -> list[str]:
        return [sequence.request_id for sequence in self.line.in_turn()]


def test_line_is_in_order_of_arrival() -> None:
    arrivals = Arrivals()
    for name in ("a1", "b1", "a2"):
        arrivals.add(name)
    assert arrivals.names() == ["a1", "b1", "a2"]


def test_who_comes_back_takes_the_old_place() -> None:
    arrivals = Arrivals()
    first, _ = arrivals.add("a1"), arrivals.add("a2")
    arrivals.line.remove(first)
    arrivals.line.add(first)
    assert arrivals.names() == ["a1", "a2"]


def test_tenant_that_was_served_least_comes_first() -> None:
    counters = TokenCounters({})
    arrivals = Arrivals(counters=counters)
    arrivals.add("a1")
    arrivals.add("b1")
    counters.charge("a", num_input=1)
    assert arrivals.names() == ["b1", "a1"]


def test_tenant_outside_is_one_that_was_served_no_more_than_the_others() -> None:
    counters = TokenCounters({})
    arrivals = Arrivals(counters=counters)
    first, other, _ = (arrivals.add(name) for name in ("a1", "b1", "b2"))
    assert arrivals.line.first_of_tenant_outside(()) is first
    assert arrivals.line.first_of_tenant_outside({"a"}) is other
    assert arrivals.line.first_of_tenant_outside({"a", "b"}) is None
    counters.charge("b", num_input=1)
    assert arrivals.line.first_of_tenant_outside({"a"}) is None


def test_charges_count_from_one_turn_to_the_next() -> None:
    counters = TokenCounters({})
    arrivals = Arrivals(counters=counters)
    for name in ("a1", "a2", "a3", "b1", "b2"):
        arrivals.add(name)
    order = []
    for sequence in arrivals.line.in_turn():
        counters.charge(sequence.request.tenant, num_input=1)
        order.append(sequence.request_id)
    assert order == ["a1", "b1", "a2", "b2", "a3"]


def test_some_may_be_passed_over_and_others_taken() -> None:
    arrivals = Arrivals()
    for name in ("a1", "a2", "a3", "a4"):
        arrivals.add(name)
    turns = arrivals.line.in_turn()
    for sequence in turns:
        if sequence.request_id in ("a2", "a4"):
            arrivals.line.remove(sequence)
    assert arrivals.names() == ["a1", "a3"]


def test_policy_orders_within_a_tenant_only() -> None:
    counters = TokenCounters({})
    arrivals = Arrivals(PriorityFirst(), counters)
    arrivals.add("a1", priority=5)
    arrivals.add("a2", priority=1)
    arrivals.add("b1", priority=9)
    counters.charge("a", num_input=1)
    assert arrivals.names() == ["b1", "a2", "a1"]


def test_tenants_do_not_matter_without_shares() -> None:
    arrivals = Arrivals(PriorityFirst())
    arrivals.add("a1", priority=5)
    arrivals.add("b1", priority=1)
    assert arrivals.names() == ["b1", "a1"]


def test_tenant_gets_no_credit_for_the_time_when_it_wanted_nothing() -> None:
    counters = TokenCounters({})
    arrivals = Arrivals(counters=counters)
    arrivals.add("a1")
    counters.charge("a", num_input=100)
    arrivals.add("b1")
    assert counters["b"] == 100


def test_removing_forgets_everything() -> None:
    arrivals = Arrivals(counters=TokenCounters({}))
    sequence = arrivals.add("a1", num_tokens=7, deadline_s=1.0)
    assert (len(arrivals.line), arrivals.line.num_tokens) == (1, 7)
    arrivals.line.remove(sequence)
    arrivals.line.audit()
    assert (len(arrivals.line), arrivals.line.num_tokens, arrivals.line.first()) == (0, 0, None)
    assert arrivals.line.find(sequence.request_id) is None


def late(deadline_s: float | None, num_generated: int = 0) -> list[str]:
    """Who is overdue at 2.0 s, when one with this deadline arrived at 0 s."""
    line = WaitingLine(FirstComeFirstServed(), None)
    sequence = Sequence(make_request("a1", [1]), give_up_at=deadline_s)
    sequence.token_ids += [1] * num_generated
    line.add(sequence)
    return [sequence.request_id for sequence in line.overdue(2.0)]


def test_overdue_are_those_past_their_deadline() -> None:
    assert (late(1.9), late(2.0), late(2.1), late(None)) == (["a1"], ["a1"], [], [])


def test_begun_answer_is_never_overdue() -> None:
    assert late(1.0, num_generated=1) == []


def test_bounds_are_told_with_the_numbers() -> None:
    bounds = LineBounds(max_requests=2, max_tokens=10)
    bounds.check(1, 4, 6)
    with pytest.raises(ServiceUnavailable, match="2 requests wait here already, of at most 2"):
        bounds.check(2, 2, 1)
    with pytest.raises(ServiceUnavailable, match="4 tokens wait here already and the request has 7; at most 10"):
        bounds.check(1, 4, 7)


def test_empty_line_takes_a_prompt_of_any_length() -> None:
    LineBounds(max_requests=1, max_tokens=10).check(0, 0, 1000)


def test_line_without_bounds_takes_all() -> None:
    LineBounds(max_requests=None, max_tokens=None).check(10**6, 10**9, 10**6)
