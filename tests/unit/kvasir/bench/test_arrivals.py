import math
from itertools import pairwise
from statistics import mean, pstdev

import pytest

from kvasir.bench.arrivals import Ramp, Traffic


def gaps(traffic, num_requests=4000, seed=0):
    offsets = traffic.offsets_s(num_requests, seed)
    return [later - earlier for earlier, later in pairwise([0.0, *offsets])]


def test_without_a_rate_all_come_at_once():
    assert Traffic().offsets_s(3, 0) == [0, 0, 0]


def test_every_seed_offers_the_same_load_in_another_order():
    one, other = (Traffic(request_rate=8).offsets_s(100, seed) for seed in (1, 2))
    assert one != other
    assert one[-1] == other[-1] == pytest.approx(100 / 8)
    assert one == Traffic(request_rate=8).offsets_s(100, 1)
    assert one == sorted(one)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_the_gamma_distribution_does(burstiness):
    found = gaps(Traffic(request_rate=10, burstiness=burstiness))
    assert mean(found) == pytest.approx(0.1)
    assert pstdev(found) / mean(found) == pytest.approx(1 / math.sqrt(burstiness), rel=0.1)


def test_infinite_burstiness_is_a_clock():
    assert gaps(Traffic(request_rate=4, burstiness=math.inf), 10) == [pytest.approx(0.25)] * 10


def test_a_linear_ramp_adds_and_an_exponential_one_multiplies():
    linear = Traffic(burstiness=math.inf, ramp=Ramp(strategy="linear", start_rps=1, end_rps=5))
    exponential = Traffic(burstiness=math.inf, ramp=Ramp(strategy="exponential", start_rps=1, end_rps=16))
    assert [1 / gap for gap in gaps(linear, 5)] == pytest.approx([1, 2, 3, 4, 5])
    assert [1 / gap for gap in gaps(exponential, 5)] == pytest.approx([1, 2, 4, 8, 16])
