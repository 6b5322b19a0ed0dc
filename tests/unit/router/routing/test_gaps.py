"""Which steps with prompts streams notice."""

import math

import pytest

from kvasir_protocol.events import StepTimes
from kvasir_protocol.step_lengths import BOUNDS_S, NUM_BUCKETS, bucket_of
from kvasir_router.routing.gaps import GapMeter

NOTHING = StepTimes()


def steps(*gaps_s: float, times: int = 1) -> tuple[int, ...]:
    counts = [0] * NUM_BUCKETS
    for gap_s in gaps_s:
        counts[bucket_of(gap_s)] += times
    return tuple(counts)


def bound(gap_s: float) -> float:
    return BOUNDS_S[bucket_of(gap_s)]


def test_usual_is_what_99_of_100_steps_without_prompts_take() -> None:
    meter = GapMeter()
    decodes = tuple(map(sum, zip(steps(0.002, times=99), steps(0.5), strict=True)))
    meter.note(StepTimes(decode_gaps=decodes), NOTHING)
    assert meter.usual_gap_s == bound(0.002)
    more = tuple(map(sum, zip(decodes, steps(0.01), strict=True)))
    meter.note(StepTimes(decode_gaps=more), StepTimes(decode_gaps=decodes))
    assert meter.usual_gap_s == bound(0.01)


def test_long_steps_are_those_beyond_what_is_usual() -> None:
    meter = GapMeter()
    meter.note(StepTimes(decode_gaps=steps(0.005, times=100), prefill_gaps=steps(0.003, 0.005, 0.05, 0.5)), NOTHING)
    assert meter.share_long == pytest.approx(0.5)


def test_all_steps_with_prompts_are_long_while_nothing_is_usual() -> None:
    meter = GapMeter()
    meter.note(StepTimes(decode_gaps=steps(0.5, times=99), prefill_gaps=steps(0.001)), NOTHING)
    assert (meter.usual_gap_s, meter.share_long) == (None, 1.0)


def test_replica_that_tells_of_no_gaps_leaves_all_unknown() -> None:
    meter = GapMeter()
    meter.note(NOTHING, NOTHING)
    assert (meter.usual_gap_s, meter.share_long) == (None, 1.0)


@pytest.mark.parametrize("buckets", [(5,), (5,) * (NUM_BUCKETS + 1)])
def test_replica_that_counts_otherwise_leaves_what_was_known(buckets: tuple[int, ...]) -> None:
    meter, known = GapMeter(), StepTimes(decode_gaps=steps(0.005, times=200))
    meter.note(known, NOTHING)
    meter.note(StepTimes(decode_gaps=buckets, prefill_gaps=buckets), known)
    meter.note(known, StepTimes(decode_gaps=buckets))
    assert meter.usual_gap_s == bound(0.005)


def test_what_was_usual_is_forgotten_in_time() -> None:
    meter, once = GapMeter(), StepTimes(decode_gaps=steps(0.5, times=150))
    meter.note(once, NOTHING)
    assert meter.usual_gap_s == bound(0.5)
    meter.fade(0.7)
    assert meter.usual_gap_s == bound(0.5)
    meter.fade(0.9)
    assert (meter.usual_gap_s, meter.share_long) == (None, 1.0)


def test_newer_steps_count_more_than_older_ones() -> None:
    meter, old = GapMeter(), StepTimes(decode_gaps=steps(0.5, times=1000))
    meter.note(old, NOTHING)
    meter.fade(1e-3)
    meter.note(StepTimes(decode_gaps=steps(0.005, times=1000)), NOTHING)
    assert meter.usual_gap_s == bound(0.005)


def test_steps_beyond_all_bounds_are_usual_where_they_are_many() -> None:
    meter = GapMeter()
    meter.note(StepTimes(decode_gaps=steps(1e6, times=100), prefill_gaps=steps(1e7)), NOTHING)
    assert (meter.usual_gap_s, meter.share_long) == (math.inf, 0.0)
