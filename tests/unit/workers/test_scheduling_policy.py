"""Orders over sequences: who is next, and who gives way."""

import pytest

from kvasir_workers.scheduling_policy import (
    MAX_OVERTAKERS,
    FirstComeFirstServed,
    LongestPrefixFirst,
    PriorityFirst,
    make_scheduling_policy,
)
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fakes import make_request


def arrivals(*priorities: int) -> list[Sequence]:
    """One sequence per priority, in order of arrival."""
    return [
        Sequence(make_request(f"s{index}", [1], priority=priority), arrival_index=index)
        for index, priority in enumerate(priorities)
    ]


def indexes(sequences: object) -> list[int]:
    return [sequence.arrival_index for sequence in sequences]  # type: ignore[attr-defined]


def cached(*num_tokens: int) -> LongestPrefixFirst:
    """The policy over a cache that holds so many tokens of the first, second … arrival."""
    return LongestPrefixFirst(lambda sequence: dict(enumerate(num_tokens)).get(sequence.arrival_index, 0))


def test_first_come_first_served_keeps_the_order_of_arrival() -> None:
    assert indexes(FirstComeFirstServed().order(arrivals(3, 1, 2))) == [0, 1, 2]


def test_lower_priority_comes_first_then_arrival() -> None:
    assert indexes(PriorityFirst().order(arrivals(1, 0, 1, -5, 0))) == [3, 1, 4, 0, 2]


def test_longest_cached_prefix_comes_first_then_arrival() -> None:
    assert indexes(cached(4, 16, 4, 0).order(arrivals(0, 0, 0, 0))) == [1, 0, 2, 3]


def test_answer_that_was_begun_comes_before_a_longer_prefix() -> None:
    line = arrivals(0, 0)
    line[1].num_cached_tokens = 0
    assert indexes(cached(99, 0).order(line)) == [1, 0]


def test_longest_prefix_keeps_the_order_of_arrival_in_a_long_line() -> None:
    line = arrivals(*[0] * (MAX_OVERTAKERS + 2))
    policy = cached(*range(MAX_OVERTAKERS + 2))
    assert indexes(policy.order(line)) == indexes(line)
    assert indexes(policy.order(line[1:])) == indexes(reversed(line[1:]))


def test_longest_prefix_asks_nothing_of_the_cache_in_a_long_line() -> None:
    asked: list[Sequence] = []

    def num_cached(sequence: Sequence) -> int:
        asked.append(sequence)
        return 0

    LongestPrefixFirst(num_cached).order(arrivals(*[0] * (MAX_OVERTAKERS + 2)))
    assert asked == []


def test_first_in_line_is_overtaken_only_so_often_however_short_the_line() -> None:
    first, newest = arrivals(0, 0)
    newest.arrival_index = MAX_OVERTAKERS
    policy = LongestPrefixFirst(lambda sequence: sequence.arrival_index)
    assert policy.order([first, newest]) == [newest, first]
    newest.arrival_index += 1
    assert policy.order([first, newest]) == [first, newest]


@pytest.mark.parametrize("policy", [FirstComeFirstServed(), PriorityFirst(), cached()])
def test_order_of_an_empty_line_is_empty(policy: FirstComeFirstServed) -> None:
    assert list(policy.order([])) == []


@pytest.mark.parametrize(
    ("policy", "worst"), [(FirstComeFirstServed(), 3), (PriorityFirst(), 2), (cached(0, 0, 0, 9), 3)]
)
def test_worst_of_the_running_by_policy(policy: FirstComeFirstServed, worst: int) -> None:
    assert max(arrivals(0, 2, 2, 1), key=policy.rank).arrival_index == worst


def test_only_a_strictly_better_priority_outranks() -> None:
    better, worse, equal = arrivals(0, 1, 1)
    assert PriorityFirst().outranks(better, worse)
    assert not PriorityFirst().outranks(equal, worse)
    assert not FirstComeFirstServed().outranks(better, worse)
    assert not cached().outranks(better, worse)


def test_policies_are_chosen_by_name() -> None:
    made = [type(make_scheduling_policy(name, lambda _: 0)) for name in ("fcfs", "priority", "longest-prefix")]  # type: ignore[arg-type]
    assert made == [FirstComeFirstServed, PriorityFirst, LongestPrefixFirst]
