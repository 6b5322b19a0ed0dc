"""Who makes way for a tenant that runs nothing, and for how many it is worth it."""

import pytest

from kvasir_workers.displacement import displaceable, fewest
from kvasir_workers.sequence import Sequence
from tests.unit.workers.engine_house import House, greedy
from tests.unit.workers.fakes import make_request


def running(tenants: str) -> list[Sequence]:
    """One of each letter's tenant, the least served first."""
    return [Sequence(make_request(f"{tenant}{i}", [1], tenant=tenant)) for i, tenant in enumerate(tenants)]


@pytest.mark.parametrize(
    ("tenants", "expected"),
    [("", []), ("a", []), ("abc", []), ("aa", ["a1"]), ("aabbb", ["b4", "b3", "a1"]), ("baba", ["a3", "b2"])],
)
def test_of_each_tenant_one_stays(tenants: str, expected: list[str]) -> None:
    assert [sequence.request_id for sequence in displaceable(running(tenants))] == expected


@pytest.mark.parametrize(("most", "needed", "expected"), [(0, 0, 0), (0, 1, None), (5, 3, 3), (5, 5, 5), (5, 6, None)])
def test_no_more_wait_than_must(most: int, needed: int, expected: int | None) -> None:
    assert fewest(most, lambda number: number >= needed) == expected


def crowded() -> House:
    """Three tenants with four running each, a page each, in 60 pages."""
    house = House(num_pages=60, max_num_seqs=40, budget=64, fair_share=True, caches=False)
    for tenant in "abc":
        for i in range(4):
            house.engine.add(
                make_request(f"{tenant}{i}", [1, 2, 3, i + 1], tenant=tenant, sampling=greedy(max_tokens=12))
            )
    house.step()
    return house


def test_nobody_waits_for_a_guest_that_would_not_fit_all_the_same() -> None:
    house = crowded()
    house.engine.add(make_request("guest", [1] * (57 * 4), tenant="d", sampling=greedy(max_tokens=2)))
    for _ in range(5):
        house.step()
        assert house.engine.num_running == 12
    assert house.engine.counters().num_preemptions == 0
    house.drain()


def test_those_wait_for_a_guest_whose_pages_it_needs_and_no_others() -> None:
    house = crowded()
    num_left = 60 - house.engine.num_used_pages - 12  # each of them begins a page now
    house.engine.add(make_request("guest", [1] * (num_left * 4 + 2), tenant="d", sampling=greedy(max_tokens=2)))
    house.step()
    assert house.engine.counters().num_preemptions == 1
    assert house.engine.num_running == 12
    house.drain()
