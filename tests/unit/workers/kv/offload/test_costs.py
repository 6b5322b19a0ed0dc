"""When a page is worth restoring."""

import pytest

from kvasir_workers.kv.offload.costs import (
    TRIAL_EVERY,
    Prices,
    PriceTag,
    Rate,
    Trials,
    compute_s,
    is_disk_cheaper,
    is_host_cheaper,
)

PAGE_SIZE = 16


def prices(token_s: float | None = 1.0, host_page_s: float | None = 1.0, disk_page_s: float | None = 1.0) -> Prices:
    return Prices(token_s, host_page_s, disk_page_s)


def test_what_is_refused_is_tried_now_and_then() -> None:
    trials = Trials()
    assert sum(trials.is_due() for _ in range(3 * TRIAL_EVERY)) == 3


def test_rate_is_unknown_before_it_is_measured() -> None:
    assert Rate().seconds_per_unit is None


def test_large_measurements_count_for_more() -> None:
    rate = Rate()
    rate.add(1.0, 1)
    rate.add(10.0, 100)
    assert rate.seconds_per_unit == pytest.approx((0.9 * 1 + 10) / (0.9 * 1 + 100))


def test_rate_follows_a_change() -> None:
    rate = Rate()
    for seconds in [1.0] * 50 + [3.0] * 50:
        rate.add(seconds, 1)
    assert rate.seconds_per_unit == pytest.approx(3.0, rel=0.02)


def test_price_tag_tells_what_was_measured() -> None:
    tag = PriceTag()
    tag.token.add(2.0, 4)
    tag.disk_page.add(3.0, 1)
    assert tag.prices() == Prices(0.5, None, 3.0)


def test_computing_is_priced_by_tokens() -> None:
    assert compute_s(prices(token_s=0.5), 3, PAGE_SIZE) == 24


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (prices(token_s=1.0, host_page_s=15.9), True),
        (prices(token_s=1.0, host_page_s=16.0), False),
        (prices(token_s=None), False),
        (prices(host_page_s=None), False),
    ],
)
def test_host_memory_is_used_if_a_page_is_sooner_copied_than_computed(known: Prices, expected: bool) -> None:
    assert is_host_cheaper(known, PAGE_SIZE) is expected


@pytest.mark.parametrize(
    ("known", "num_queued", "expected"),
    [
        (prices(host_page_s=1.0, disk_page_s=14.9), 0, True),
        (prices(host_page_s=1.0, disk_page_s=15.0), 0, False),
        (prices(host_page_s=1.0, disk_page_s=7.0), 2, True),
        (prices(host_page_s=1.0, disk_page_s=7.0), 3, False),
        (prices(disk_page_s=None), 0, False),
        (prices(host_page_s=None), 0, False),
        (prices(token_s=None), 0, False),
    ],
)
def test_disk_is_read_if_that_is_sooner_even_behind_others(known: Prices, num_queued: int, expected: bool) -> None:
    assert is_disk_cheaper(known, 2, num_queued, PAGE_SIZE) is expected
