"""Conditional routing beside the set-ups between which it chooses, in made-up time."""

from functools import cache

import pytest

from kvasir_protocol.view import Role
from kvasir_router.routing.policy import Conditional, LeastLoaded, RoutingPolicy
from tests.unit.router.routing.simulated_pools import Crowd, simulate

SEPARATE: tuple[Role, Role] = ("prefill", "decode")
MIXED: tuple[Role, Role] = ("mixed", "mixed")
SECONDS, WARM_UP_S = 60.0, 10.0
FIGURES = ("p99 between tokens", "median first token, long", "median first token, short")

FEW = Crowd(streams_per_s=2, answer=384, burst=2, long_prompt=2048, beat_s=2)
BURSTS = Crowd(streams_per_s=6, answer=384, burst=4, long_prompt=1024, beat_s=2)
NEAR = Crowd(streams_per_s=9, answer=384, burst=4, long_prompt=1024, beat_s=2)
"""Nearly so many that separate pools pay."""
LONG = Crowd(streams_per_s=6, answer=384, burst=3, long_prompt=2048, beat_s=2)
MANY = Crowd(streams_per_s=10, answer=384, burst=4, long_prompt=1024, beat_s=2)
HEAVY = Crowd(streams_per_s=12, answer=512, burst=8, long_prompt=1024, beat_s=2)
"""So many that the decode replica has no room for prompts."""


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


@cache
def figures(crowd: Crowd, roles: tuple[Role, Role], policy: type[RoutingPolicy]) -> tuple[float, ...]:
    requests = crowd.requests(SECONDS)
    simulate(roles, policy(), requests)
    counted = [asked for asked in requests if asked.at_s >= WARM_UP_S]
    long = [asked.first_token_s for asked in counted if asked.prompt == crowd.long_prompt]
    short = [asked.first_token_s for asked in counted if asked.prompt != crowd.long_prompt]
    gaps = [gap for asked in counted for gap in asked.gaps_s]
    return quantile(gaps, 0.99), quantile(long, 0.5), quantile(short, 0.5)


def slower_than(roles: tuple[Role, Role], crowd: Crowd) -> dict[str, float]:
    """Each figure of conditional routing, as a multiple of the same of another set-up."""
    found, expected = figures(crowd, SEPARATE, Conditional), figures(crowd, roles, LeastLoaded)
    return {name: ours / theirs for name, ours, theirs in zip(FIGURES, found, expected, strict=True)}


@pytest.mark.parametrize("crowd", [FEW, BURSTS, NEAR, LONG, MANY, HEAVY])
def test_conditional_is_at_most_a_tenth_slower_than_separate_pools(crowd: Crowd) -> None:
    slower = slower_than(SEPARATE, crowd)
    assert max(slower.values()) < 1.1, slower


@pytest.mark.parametrize("crowd", [FEW, BURSTS, NEAR, LONG, MANY, HEAVY])
def test_first_tokens_of_conditional_come_at_most_a_tenth_later_than_in_mixed_pools(crowd: Crowd) -> None:
    slower = slower_than(MIXED, crowd)
    assert max(slower[name] for name in FIGURES[1:]) < 1.1, slower


@pytest.mark.parametrize("crowd", [FEW, BURSTS, NEAR, LONG, MANY, HEAVY])
def test_tokens_of_conditional_come_at_most_a_fifth_slower_than_in_mixed_pools(crowd: Crowd) -> None:
    """All streams on one replica make its steps longer than those of two that share them."""
    slower = slower_than(MIXED, crowd)
    assert round(slower[FIGURES[0]], 3) <= 1.2, slower


def test_bursts_of_long_prompts_stop_streams_of_mixed_pools_and_not_of_separate_ones() -> None:
    mixed, separate = (figures(HEAVY, roles, LeastLoaded)[0] for roles in (MIXED, SEPARATE))
    assert separate < mixed / 3
