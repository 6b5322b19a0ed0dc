"""Whether a step with prompts is one that streams notice: longer than 99 of 100 of those that they wait for anyway."""

import math
from collections.abc import Sequence
from itertools import accumulate, zip_longest

from kvasir_protocol.events import StepTimes
from kvasir_protocol.step_lengths import BOUNDS_S, NUM_BUCKETS

_USUAL = 0.99

_LEAST_STEPS = 100
"""Of which one in a hundred can be told."""


class GapMeter:
    """Counts of both kinds of steps by their length; older ones count less."""

    def __init__(self) -> None:
        self._prefill, self._decode = [0.0] * NUM_BUCKETS, [0.0] * NUM_BUCKETS
        self._num_decodes = 0.0
        # Of what was noted. All fades alike: what it says of lengths stays until something new is counted.
        self._left = 1.0
        self._usual_gap_s, self._share_long = math.inf, 1.0

    @property
    def usual_gap_s(self) -> float | None:
        """After what time at most 99 of 100 steps without prompts have followed the step before; None while too few
        were seen, or too long ago."""
        return self._usual_gap_s if self._knows_enough else None

    @property
    def share_long(self) -> float:
        """Of the steps with prompts, how many took longer; all while nothing is usual."""
        return self._share_long if self._knows_enough else 1.0

    @property
    def _knows_enough(self) -> bool:
        return self._left * self._num_decodes >= _LEAST_STEPS

    def fade(self, factor: float) -> None:
        self._left *= factor

    def note(self, now: StepTimes, before: StepTimes) -> None:
        """Totals, and those before."""
        self._prefill = _added(self._prefill, self._left, now.prefill_gaps, before.prefill_gaps)
        self._decode = _added(self._decode, self._left, now.decode_gaps, before.decode_gaps)
        self._left, self._num_decodes = 1.0, sum(self._decode)
        usual = self._usual_bucket()
        self._usual_gap_s = BOUNDS_S[usual] if usual < len(BOUNDS_S) else math.inf
        num_prefills = sum(self._prefill)
        self._share_long = sum(self._prefill[usual + 1 :]) / num_prefills if num_prefills else 1.0

    def _usual_bucket(self) -> int:
        least = _USUAL * self._num_decodes
        return next(bucket for bucket, sofar in enumerate(accumulate(self._decode)) if sofar >= least)


def _added(counts: Sequence[float], left: float, now: Sequence[int], before: Sequence[int]) -> list[float]:
    """What is left of the counts, and what came since: nothing of a replica that tells of none, or counts otherwise."""
    if len(now) != NUM_BUCKETS or len(before) not in (0, NUM_BUCKETS):
        return [left * count for count in counts]
    came = (total - last for total, last in zip_longest(now, before, fillvalue=0))
    return [left * count + number for count, number in zip(counts, came, strict=True)]
