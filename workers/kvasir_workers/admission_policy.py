"""Whether there is room for one more. Values in, a yes or no out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, assert_never

from kvasir_protocol.config import AdmissionPolicyName


@dataclass(frozen=True, slots=True)
class PageNeed:
    """Pages that a sequence still lacks: for the tokens that it has, and for all that it may come to have."""

    known: int
    final: int


class AdmissionPolicy(Protocol):
    def admits(self, newcomer: PageNeed, inside: Iterable[PageNeed], num_available: int) -> bool:
        """inside: those that run or are promised a place. num_available: pages that can be had now."""
        ...


class MaxUtilization:
    """Room for what is known, not only for the first chunk: else newcomers evict each other. Answers that grow may
    still run short of pages, and then somebody is preempted."""

    def admits(self, newcomer: PageNeed, inside: Iterable[PageNeed], num_available: int) -> bool:
        return newcomer.known <= num_available


class NoEvict:
    """Room for the longest answers of all: nobody is ever preempted, and pages that are never needed stay idle."""

    def admits(self, newcomer: PageNeed, inside: Iterable[PageNeed], num_available: int) -> bool:
        return newcomer.final + sum(need.final for need in inside) <= num_available


def make_admission_policy(name: AdmissionPolicyName) -> AdmissionPolicy:
    match name:
        case "max-utilization":
            return MaxUtilization()
        case "no-evict":
            return NoEvict()
        case _:
            assert_never(name)
