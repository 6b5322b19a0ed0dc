"""How long an engine's steps take, counted for whoever asks."""

from kvasir_protocol.events import StepTimes
from kvasir_protocol.step_lengths import NUM_BUCKETS, bucket_of


class _Steps:
    """Of one kind."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.number = 0
        self.gaps = [0] * NUM_BUCKETS

    def count(self, step_s: float, gap_s: float) -> None:
        self.seconds += step_s
        self.number += 1
        self.gaps[bucket_of(gap_s)] += 1


class StepMeter:
    """One thread counts; any may ask, and may then miss a part of the latest step."""

    def __init__(self) -> None:
        self._prefill, self._decode = _Steps(), _Steps()

    def count(self, step_s: float, gap_s: float, *, has_prompts: bool) -> None:
        """gap_s: from the end of the step before to its own, in seconds."""
        (self._prefill if has_prompts else self._decode).count(step_s, gap_s)

    def times(self) -> StepTimes:
        return StepTimes(
            prefill_s=self._prefill.seconds,
            prefill_steps=self._prefill.number,
            prefill_gaps=tuple(self._prefill.gaps),
            decode_s=self._decode.seconds,
            decode_steps=self._decode.number,
            decode_gaps=tuple(self._decode.gaps),
        )
