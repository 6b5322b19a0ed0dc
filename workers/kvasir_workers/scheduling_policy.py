"""Orders: who in line is admitted next, and who of those that run gives up its pages first. Values in, an order out."""

from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import ClassVar, Protocol, assert_never

from kvasir_protocol.config import SchedulingPolicyName
from kvasir_workers.sequence import Sequence

MAX_OVERTAKERS = 128
"""Longest prefix first gives way to first come, first served when so many came after the first in line: beyond that
the search costs more than its hits save (SGLang draws the same line), and nobody without a cached prefix starves."""

Rank = tuple[int, ...]


class SchedulingPolicy(Protocol):
    """displaces: a sequence in line may take the place of a running one that it outranks."""

    displaces: ClassVar[bool]

    def order(self, waiting: Many[Sequence]) -> Many[Sequence]:
        """The line as it is to be admitted; it comes in order of arrival."""
        ...

    def rank(self, sequence: Sequence) -> Rank:
        """Of the running ones the highest rank is preempted first. It must not change while a sequence runs."""
        ...

    def outranks(self, newcomer: Sequence, running: Sequence) -> bool:
        """Whether newcomer may make running wait."""
        ...


class FirstComeFirstServed:
    """In order of arrival; the last to come is preempted first."""

    displaces: ClassVar = False

    def order(self, waiting: Many[Sequence]) -> Many[Sequence]:
        return waiting

    def rank(self, sequence: Sequence) -> Rank:
        return (sequence.arrival_index,)

    def outranks(self, newcomer: Sequence, running: Sequence) -> bool:
        return False


class PriorityFirst:
    """Lower request.priority first, as in vLLM, then by arrival. Low priorities wait while others come."""

    displaces: ClassVar = True

    def order(self, waiting: Many[Sequence]) -> Many[Sequence]:
        return sorted(waiting, key=self.rank)

    def rank(self, sequence: Sequence) -> Rank:
        return (sequence.request.priority, sequence.arrival_index)

    def outranks(self, newcomer: Sequence, running: Sequence) -> bool:
        return newcomer.request.priority < running.request.priority


class LongestPrefixFirst:
    """Answers that were begun, then those with most cached tokens, so that a prefix is used while it is there.

    num_cached: how many tokens of a waiting sequence the cache holds now. Idea: SGLang (Zheng et al., 2024).
    """

    displaces: ClassVar = False

    def __init__(self, num_cached: Callable[[Sequence], int]) -> None:
        self._num_cached = num_cached

    def order(self, waiting: Many[Sequence]) -> Many[Sequence]:
        if not waiting or waiting[-1].arrival_index - waiting[0].arrival_index > MAX_OVERTAKERS:
            return waiting
        return sorted(waiting, key=self._eagerness)

    def _eagerness(self, sequence: Sequence) -> Rank:
        is_new = sequence.num_cached_tokens is None
        return (is_new, -self._num_cached(sequence), sequence.arrival_index)

    def rank(self, sequence: Sequence) -> Rank:
        return (sequence.arrival_index,)

    def outranks(self, newcomer: Sequence, running: Sequence) -> bool:
        return False


def make_scheduling_policy(name: SchedulingPolicyName, num_cached: Callable[[Sequence], int]) -> SchedulingPolicy:
    match name:
        case "fcfs":
            return FirstComeFirstServed()
        case "priority":
            return PriorityFirst()
        case "longest-prefix":
            return LongestPrefixFirst(num_cached)
        case _:
            assert_never(name)
