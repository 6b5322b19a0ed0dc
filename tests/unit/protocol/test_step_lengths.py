"""Buckets of steps."""

import pytest

from kvasir_protocol.step_lengths import BOUNDS_S, NUM_BUCKETS, bucket_of


@pytest.mark.parametrize(("step_s", "bucket"), [(0.0, 0), (2e-4, 0), (2.1e-4, 1), (2.5e-4, 1), (2.6e-4, 2)])
def test_step_is_in_the_first_bucket_that_is_long_enough(step_s: float, bucket: int) -> None:
    assert bucket_of(step_s) == bucket


def test_no_step_is_too_long() -> None:
    assert BOUNDS_S[-1] >= 60.0
    assert bucket_of(1e9) == NUM_BUCKETS - 1
