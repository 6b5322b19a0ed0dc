"""Up to where sums of the ranks' own pay."""

import pytest
import torch
from torch import Tensor

from kvasir_kernels.one_shot_all_reduce.reference import BUFFER_BYTES, can_add_up
from kvasir_workers.parallel.sum_limit import SIZES, Sum, choose_limit, measure_sums


@pytest.mark.parametrize(
    ("ours", "limit"),
    [
        ({4: 1.0, 8: 2.0, 16: 9.0}, 8),
        ({4: 1.0, 8: 2.0, 16: 3.0}, 16),
        ({4: 5.0, 8: 2.0, 16: 3.0}, 0),
        ({4: 1.0, 8: 9.0, 16: 3.0}, 4),
        ({4: 4.0, 8: 2.0, 16: 3.0}, 0),
    ],
    ids=["to a size", "always", "never", "not beyond a size where they lost", "as fast is not faster"],
)
def test_limit_is_up_to_where_ours_was_always_the_faster(ours: dict[int, float], limit: int) -> None:
    assert choose_limit({size: (seconds, 4.0) for size, seconds in ours.items()}) == limit


def test_every_size_is_timed_both_ways_in_the_same_order_at_every_rank() -> None:
    timed: list[tuple[str, int]] = []

    def ours(values: Tensor) -> None:
        raise AssertionError("the clock calls it")

    def nccls(values: Tensor) -> None:
        raise AssertionError("the clock calls it")

    def clock(add_up: Sum, size: int) -> float:
        timed.append(("ours" if add_up is ours else "nccls", size))
        return float(len(timed))

    measured = measure_sums(ours, nccls, clock)
    assert timed == [(way, size) for size in SIZES for way in ("ours", "nccls")]
    assert measured[SIZES[1]] == (3.0, 4.0)


def test_sizes_go_up_to_what_a_buffer_holds() -> None:
    assert SIZES[-1] == BUFFER_BYTES
    assert can_add_up(torch.zeros(SIZES[-1] // 2, dtype=torch.bfloat16))
