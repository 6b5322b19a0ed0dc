from dataclasses import replace

import pytest

from kvasir_protocol.errors import ServiceUnavailable
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import Role
from kvasir_router.routing.decode_step import DecodeStep
from kvasir_router.routing.load import ReplicaLoad
from kvasir_router.routing.policy import (
    Conditional,
    LeastLoaded,
    RequestShape,
    RoundRobin,
    RoutingPolicy,
    make_policy,
)
from kvasir_router.routing.rates import UNKNOWN, ReplicaRates

SHAPE = RequestShape(num_prompt_tokens=10, max_tokens=10)


def load(
    name: str,
    *,
    num_inflight: int = 0,
    num_requests: int = 0,
    page_usage: float = 0.0,
    prefill_line: tuple[int, ...] = (),
    rates: ReplicaRates = UNKNOWN,
) -> ReplicaLoad:
    role: Role = name.partition("-")[0]  # type: ignore[assignment]
    return ReplicaLoad(
        replica_id=ReplicaId(name),
        role=role,
        num_inflight=num_inflight,
        num_requests=num_requests,
        page_usage=page_usage,
        prefill_line=prefill_line,
        rates=rates,
    )


def choose(policy: RoutingPolicy, *loads: ReplicaLoad) -> tuple[str | None, str]:
    route = policy.choose(SHAPE, loads)
    return route.prefill, route.decode


@pytest.mark.parametrize("policy", [LeastLoaded(), RoundRobin(), Conditional()])
@pytest.mark.parametrize(
    ("alive", "expected"),
    [
        (["prefill-0", "decode-0"], ("prefill-0", "decode-0")),
        (["decode-0"], (None, "decode-0")),
        (["prefill-0"], (None, "prefill-0")),
        (["mixed-0"], (None, "mixed-0")),
        (["prefill-0", "mixed-0"], (None, "mixed-0")),
    ],
)
def test_living_roles_decide_who_prefills(
    policy: RoutingPolicy, alive: list[str], expected: tuple[str | None, str]
) -> None:
    assert choose(policy, *map(load, alive)) == expected


@pytest.mark.parametrize("policy", [LeastLoaded(), RoundRobin(), Conditional()])
def test_one_token_is_left_to_a_prefill_replica_alone(policy: RoutingPolicy) -> None:
    shape = RequestShape(num_prompt_tokens=10, max_tokens=1)
    route = policy.choose(shape, [load("prefill-0"), load("decode-0")])
    assert (route.prefill, route.decode) == (None, "prefill-0")


@pytest.mark.parametrize("policy", [LeastLoaded(), RoundRobin(), Conditional()])
def test_without_replicas_service_is_unavailable(policy: RoutingPolicy) -> None:
    with pytest.raises(ServiceUnavailable, match="no replica is up"):
        policy.choose(SHAPE, [])


def test_least_loaded_of_each_pool_is_chosen() -> None:
    loads = [
        load("prefill-0", num_inflight=2),
        load("prefill-1", num_inflight=1),
        load("decode-0", num_inflight=3),
        load("decode-1", num_inflight=4),
    ]
    assert choose(LeastLoaded(), *loads) == ("prefill-1", "decode-0")


def test_requests_of_other_routers_count() -> None:
    assert choose(LeastLoaded(), load("mixed-0", num_requests=5), load("mixed-1", num_inflight=2)) == (None, "mixed-1")


def test_own_requests_count_before_the_replica_tells_of_them() -> None:
    assert choose(LeastLoaded(), load("mixed-0", num_inflight=5), load("mixed-1", num_requests=2)) == (None, "mixed-1")


def test_of_equally_loaded_the_one_with_more_free_pages_is_chosen() -> None:
    assert choose(LeastLoaded(), load("mixed-0", page_usage=0.9), load("mixed-1", page_usage=0.1)) == (None, "mixed-1")


def test_round_robin_takes_turns_in_both_pools() -> None:
    policy = RoundRobin()
    loads = [load("decode-1"), load("decode-0"), load("prefill-0"), load("prefill-1"), load("prefill-2")]
    assert [choose(policy, *loads) for _ in range(4)] == [
        ("prefill-0", "decode-0"),
        ("prefill-1", "decode-1"),
        ("prefill-2", "decode-0"),
        ("prefill-0", "decode-1"),
    ]


def test_route_says_why() -> None:
    assert "no decode replica is alive" in LeastLoaded().choose(SHAPE, [load("prefill-0")]).reason


def test_policies_are_made_by_name() -> None:
    assert isinstance(make_policy("least-loaded"), LeastLoaded)
    assert isinstance(make_policy("round-robin"), RoundRobin)
    assert isinstance(make_policy("conditional"), Conditional)


MEASURED = ReplicaRates(prefill_tokens_per_s=1000.0, handover_s=0.05)


def separate(**decode: int) -> list[ReplicaLoad]:
    return [load("prefill-0", rates=MEASURED), load("decode-0", rates=MEASURED, **decode)]  # type: ignore[arg-type]


def test_decode_replica_that_runs_nothing_prefills_itself() -> None:
    assert choose(Conditional(), *separate()) == (None, "decode-0")


@pytest.mark.parametrize(("num_tokens", "prefill"), [(10, None), (20, "prefill-0")])
def test_beyond_the_break_even_a_prefill_replica_spares_the_streams_that_run(
    num_tokens: int, prefill: str | None
) -> None:
    """4 streams wait 1 ms for each token; a hand-over takes 50 ms."""
    shape = RequestShape(num_prompt_tokens=num_tokens, max_tokens=10)
    assert Conditional().choose(shape, separate(num_inflight=4)).prefill == prefill


def test_prompts_in_line_at_prefill_raise_the_break_even() -> None:
    shape = RequestShape(num_prompt_tokens=20, max_tokens=10)
    busy = load("prefill-0", rates=MEASURED, prefill_line=(500,))
    assert Conditional().choose(shape, [busy, separate(num_inflight=4)[1]]).prefill is None


def test_prefill_replica_with_the_fewest_tokens_in_line_is_asked() -> None:
    loads = [
        load("prefill-0", prefill_line=(900,)),
        load("prefill-1", num_inflight=3, prefill_line=(20,)),
        load("decode-0"),
    ]
    assert choose(Conditional(), *loads) == ("prefill-1", "decode-0")


def held_up(prefill_steps_per_s: float) -> list[ReplicaLoad]:
    """The decode replica has streams; a step without prompts takes 2 ms."""
    step = DecodeStep(seconds=0.002, num_streams=1)
    rates = replace(MEASURED, prefill_steps_per_s=prefill_steps_per_s, decode_step=step)
    return [load("prefill-0", rates=rates), load("decode-0", rates=rates, num_inflight=4)]


def test_while_prompts_hold_up_few_tokens_the_least_loaded_does_all() -> None:
    route = Conditional().choose(SHAPE, held_up(2.0))
    assert (route.prefill, route.decode) == (None, "prefill-0")
    assert route.reason == "conditional, prompts hold up 0.40% of tokens"


def test_while_prompts_hold_up_few_tokens_those_in_line_count_first() -> None:
    prefill, decode = held_up(2.0)
    assert choose(Conditional(), replace(prefill, prefill_line=(1000,)), decode) == (None, "decode-0")


def test_once_prompts_hold_up_more_than_one_token_in_two_hundred_roads_are_weighed() -> None:
    shape = RequestShape(num_prompt_tokens=20, max_tokens=10)
    route = Conditional().choose(shape, held_up(6.0))
    assert (route.prefill, route.decode) == ("prefill-0", "decode-0")


def test_conditional_route_says_why_with_its_terms() -> None:
    shape = RequestShape(num_prompt_tokens=20, max_tokens=10)
    reason = Conditional().choose(shape, separate(num_inflight=4)).reason
    assert reason == (
        "conditional, 20 tokens: 20.0 ms at decode-0 and 1.00 times 80.0 ms for its 4 streams, "
        "against 20.0 ms at prefill-0 and 50.0 ms to hand over"
    )
