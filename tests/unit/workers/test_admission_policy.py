"""Whether there is room for one more."""

import pytest

from kvasir_workers.admission_policy import MaxUtilization, NoEvict, PageNeed, make_admission_policy


@pytest.mark.parametrize(("num_available", "expected"), [(2, False), (3, True)])
def test_max_utilization_asks_for_what_is_known(num_available: int, expected: bool) -> None:
    inside = [PageNeed(known=0, final=50)]
    assert MaxUtilization().admits(PageNeed(known=3, final=9), inside, num_available) is expected


@pytest.mark.parametrize(("num_available", "expected"), [(15, False), (16, True)])
def test_no_evict_asks_for_the_longest_answers_of_all(num_available: int, expected: bool) -> None:
    inside = [PageNeed(known=0, final=5), PageNeed(known=1, final=2)]
    assert NoEvict().admits(PageNeed(known=3, final=9), inside, num_available) is expected


def test_policies_are_chosen_by_name() -> None:
    assert isinstance(make_admission_policy("max-utilization"), MaxUtilization)
    assert isinstance(make_admission_policy("no-evict"), NoEvict)
