"""The bound of the virtual token counter's paper, over random traffic: no tenant gets far ahead of another."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir_protocol.config import TenantWeight
from kvasir_workers.fair_share import INPUT_WEIGHT, OUTPUT_WEIGHT
from tests.unit.workers.engine_house import House, greedy
from tests.unit.workers.fakes import make_request

MAX_PROMPT_TOKENS = 24
MAX_ANSWER_TOKENS = 12


class Backlog:
    """Tenants that always have more in line than could be admitted in a step, and what each was served."""

    def __init__(self, house: House, tenants: tuple[str, ...], dice: random.Random) -> None:
        self.house, self.tenants, self.dice = house, tenants, dice
        self.served = dict.fromkeys(tenants, 0.0)
        self.tenant_of: dict[str, str] = {}
        self.begun: set[str] = set()

    def fill(self) -> None:
        for tenant in self.tenants:
            line = self.house.engine._scheduler._waiting
            num_waiting = sum(sequence.request.tenant == tenant for sequence in line)
            for _ in range(self.house.max_num_seqs + 1 - num_waiting):
                self.add(tenant)

    def add(self, tenant: str) -> None:
        """Each tenant has habits of its own: long prompts or long answers."""
        name = f"{tenant}-{len(self.tenant_of)}"
        longest = (MAX_PROMPT_TOKENS, 3) if tenant == self.tenants[0] else (5, MAX_ANSWER_TOKENS)
        prompt = [1] * self.dice.randint(1, longest[0])
        sampling = greedy(max_tokens=self.dice.randint(1, longest[1]))
        self.house.engine.add(make_request(name, prompt, sampling=sampling, tenant=tenant))
        self.tenant_of[name] = tenant

    def step(self) -> None:
        num_plans = len(self.house.runner.plans)
        outputs = self.house.step()
        for plan in self.house.runner.plans[num_plans:]:
            for sequence in (entry.sequence for entry in plan.entries):
                if sequence.request_id not in self.begun:
                    self.begun.add(sequence.request_id)
                    self.served[sequence.request.tenant] += INPUT_WEIGHT * sequence.num_prompt_tokens
        for output in outputs:
            self.served[self.tenant_of[output.request_id]] += OUTPUT_WEIGHT * len(output.token_ids)


def bound(house: House) -> float:
    """Theorem 4.4 of the paper; M is what the pages hold."""
    return 2 * max(INPUT_WEIGHT * MAX_PROMPT_TOKENS, OUTPUT_WEIGHT * house.capacity)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    num_pages=st.integers(9, 40),
    max_num_seqs=st.integers(1, 6),
    spare_budget=st.integers(0, 30),
    policy=st.sampled_from(["fcfs", "priority", "longest-prefix"]),
    admission=st.sampled_from(["max-utilization", "no-evict"]),
)
def test_service_of_two_backlogged_tenants_differs_by_no_more_than_the_bound(
    seed: int, num_pages: int, max_num_seqs: int, spare_budget: int, policy: str, admission: str
) -> None:
    house = House(
        num_pages=num_pages,
        max_num_seqs=max_num_seqs,
        budget=max_num_seqs + spare_budget,
        caches=False,
        fair_share=True,
        scheduling_policy=policy,
        admission_policy=admission,
    )
    backlog = Backlog(house, ("a", "b"), random.Random(seed))
    differences = []
    for _ in range(150):
        backlog.fill()
        backlog.step()
        differences.append(backlog.served["a"] - backlog.served["b"])
    # Of all intervals, the one from the lowest difference to the highest is the worst.
    assert max(differences) - min(differences) <= bound(house)


def shares(**config: object) -> dict[str, float]:
    """What two tenants got after 1500 steps, b asking for much longer answers."""
    house = House(num_pages=20, max_num_seqs=4, budget=16, caches=False, max_waiting_requests=None, **config)  # type: ignore[arg-type]
    backlog = Backlog(house, ("a", "b"), random.Random(1))
    for _ in range(1500):
        backlog.fill()
        backlog.step()
    return backlog.served


def test_tenants_get_equal_shares_in_the_long_run() -> None:
    served = shares(fair_share=True)
    assert served["a"] == pytest.approx(served["b"], rel=0.05)


def test_weights_divide_the_service() -> None:
    served = shares(fair_share=True, tenant_weights=(TenantWeight(tenant="a", weight=3.0),))
    assert served["a"] == pytest.approx(3 * served["b"], rel=0.05)


def steps_until_served(dice: random.Random, **config: object) -> int:
    """How long a tenant's only request takes to its first token, behind 400 of another's."""
    house = House(num_pages=16, max_num_seqs=4, budget=16, caches=False, max_waiting_requests=None, **config)  # type: ignore[arg-type]
    for number in range(400):
        prompt = [1] * dice.randint(1, MAX_PROMPT_TOKENS)
        sampling = greedy(max_tokens=dice.randint(1, MAX_ANSWER_TOKENS))
        house.engine.add(make_request(f"loud-{number}", prompt, sampling=sampling, tenant="loud"))
    for _ in range(dice.randint(1, 50)):
        house.step()
    house.engine.add(make_request("quiet", [1] * 8, sampling=greedy(), tenant="quiet"))
    num_steps = 0
    while not house.tokens("quiet"):
        house.step()
        num_steps += 1
    return num_steps


@pytest.mark.parametrize("seed", range(5))
def test_quiet_tenant_is_served_at_once_whatever_the_line(seed: int) -> None:
    assert steps_until_served(random.Random(seed), fair_share=True) == 1


@pytest.mark.parametrize("seed", range(5))
def test_where_nobody_is_displaced_a_quiet_tenant_waits_for_a_place_and_not_for_the_line(seed: int) -> None:
    num_steps = steps_until_served(random.Random(seed), fair_share=True, admission_policy="no-evict")
    assert num_steps <= 2 * MAX_ANSWER_TOKENS


def test_without_shares_a_quiet_tenant_waits_for_the_line() -> None:
    assert steps_until_served(random.Random(0)) > 400
