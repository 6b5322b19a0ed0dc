"""What a step may still take."""

import pytest

from kvasir_workers.step_budget import StepBudget


@pytest.mark.parametrize(("num_pending", "share"), [(5, 5), (10, 10), (11, 10), (100, 10)])
def test_sequence_gets_what_it_lacks_up_to_what_is_left(num_pending: int, share: int) -> None:
    assert StepBudget(10).share(num_pending, 100) == share


def test_nobody_gets_more_than_the_most() -> None:
    assert StepBudget(10).share(8, 3) == 3


def test_token_is_left_for_everyone_behind() -> None:
    assert StepBudget(10).share(20, 100, num_behind=4) == 6
    assert StepBudget(3).share(20, 100, num_behind=5) == 1


@pytest.mark.parametrize(("num_pending", "share"), [(11, 11), (12, 12), (13, 10)])
def test_spare_tokens_complete_a_prompt_and_begin_none(num_pending: int, share: int) -> None:
    assert StepBudget(10, spare=2).share(num_pending, 10) == share


def test_spare_tokens_are_taken_before_those_of_others_behind() -> None:
    budget = StepBudget(10, spare=2)
    assert budget.share(8, 10, num_behind=4) == 8
    budget.take(8, num_behind=4)
    assert (budget.left, budget.spare) == (4, 0)


def test_what_is_taken_is_no_longer_left() -> None:
    budget = StepBudget(10, spare=2)
    budget.take(4)
    assert (budget.left, budget.spare) == (6, 2)
    budget.take(7)
    assert (budget.left, budget.spare) == (0, 1)
