"""Whether a step with prompts is one that streams notice: longer than 99 of 100 of those that they wait for anyway."""

import math
from collections.abc import Sequence
from itertools import accumulate, zip_longest

from kvasir_protocol.events import StepTimes
from kvasir_protocol.step_lengths import BOUNDS_S, NUM_BUCKETS
from kvasir_router.routing.fading import fading

_USUAL = 0.99

_LEAST_STEPS = 100
"""Of which one in a hundred can be told."""


class GapMeter:
    """usual_gap_s: after what time at most 99 of 100 steps without prompts have followed the step before; None while
    too few were seen. share_long: of the steps with prompts, how many took longer; all while nothing is usual."""

    def __init__(self) -> None:
        self._prefill, self._decode = [0.0] * NUM_BUCKETS, [0.0] * NUM_BUCKETS
        self.usual_gap_s: float | None = None
        self.share_long = 1.0

    def note(self, now: StepTimes, before: StepTimes, elapsed_s: float) -> None:
        """Totals, and those of so many seconds before."""
        left = fading(elapsed_s)
        self._prefill = _added(self._prefill, left, now.prefill_gaps, before.prefill_gaps)
        self._decode = _added(self._decode, left, now.decode_gaps, before.decode_gaps)
        num_decodes, num_prefills = sum(self._decode), sum(self._prefill)
        if num_decodes < _LEAST_STEPS:
            self.usual_gap_s, self.share_long = None, 1.0
            return
        usual = next(bucket for bucket, sofar in enumerate(accumulate(self._decode)) if sofar >= _USUAL * num_decodes)
        self.usual_gap_s = BOUNDS_S[usual] if usual < len(BOUNDS_S) else math.inf
        self.share_long = sum(self._prefill[usual + 1 :]) / num_prefills if num_prefills else 1.0


def _added(counts: Sequence[float], left: float, now: Sequence[int], before: Sequence[int]) -> list[float]:
    """What is left of the counts, and what came since: nothing of a replica that tells of none, or counts otherwise."""
    if len(now) != NUM_BUCKETS or len(before) not in (0, NUM_BUCKETS):
        return [left * count for count in counts]
    came = (total - last for total, last in zip_longest(now, before, fillvalue=0))
    return [left * count + number for count, number in zip(counts, came, strict=True)]
