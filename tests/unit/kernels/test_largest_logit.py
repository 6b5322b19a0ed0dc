"""The likeliest token of each row: the first of equal ones, and of what is no number."""

import pytest
import torch

from kvasir_kernels.sampling_dispatch import largest_logit

pytestmark = pytest.mark.usefixtures("kernels")

WIDTHS = [1, 3, 16, 63, 64, 65, 130, 2048, 5003]


@pytest.mark.parametrize("width", WIDTHS)
def test_finds_the_largest_of_each_row(width: int) -> None:
    logits = torch.randn(7, width)
    token_ids, values = largest_logit(logits)
    assert token_ids.dtype == torch.int64 and values.dtype == torch.float32
    assert torch.equal(token_ids, logits.argmax(dim=-1))
    assert torch.equal(values, logits.amax(dim=-1))


@pytest.mark.parametrize("width", WIDTHS)
def test_of_equal_ones_it_is_the_first(width: int) -> None:
    logits = torch.zeros(2, width)
    logits[1, width // 2 :] = 4
    assert largest_logit(logits)[0].tolist() == [0, width // 2]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_number_that_is_none_is_found_before_all_others(width: int, place: float) -> None:
    logits, index = torch.randn(3, width), int(place * (width - 1))
    logits[1, index], logits[1, -1] = torch.nan, torch.inf if index != width - 1 else torch.nan
    token_ids, values = largest_logit(logits)
    assert token_ids[1] == index and values[1].isnan() and values[[0, 2]].isfinite().all()


def test_rows_in_which_nothing_is_allowed_say_so() -> None:
    token_ids, values = largest_logit(torch.full((2, 100), -torch.inf))
    assert token_ids.tolist() == [0, 0] and values.tolist() == [-torch.inf] * 2


def test_infinity_is_larger_than_all() -> None:
    logits = torch.randn(1, 100)
    logits[0, 70] = torch.inf
    assert largest_logit(logits)[0].tolist() == [70]


def test_rows_that_lie_apart_are_read_as_they_lie() -> None:
    logits = torch.randn(6, 40)
    assert torch.equal(largest_logit(logits[::2, :30])[0], logits[::2, :30].argmax(dim=-1))


def test_any_number_of_threads_finds_the_same() -> None:
    logits, before = torch.randn(9, 200_000), torch.get_num_threads()
    torch.set_num_threads(3)
    token_ids, values = largest_logit(logits)
    torch.set_num_threads(before)
    assert torch.equal(token_ids, logits.argmax(dim=-1)) and torch.equal(values, logits.amax(dim=-1))
