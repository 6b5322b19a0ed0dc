"""How long an engine's steps take, counted for whoever asks."""

from collections.abc import Mapping
from operator import sub
from threading import Lock

from kvasir_protocol.events import StepTimes
from kvasir_protocol.step_lengths import NUM_BUCKETS, bucket_of


class _Steps:
    """Of one kind."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.number = 0
        self.tokens = 0
        self.gaps = [0] * NUM_BUCKETS

    def count(self, step_s: float, gap_s: float, num_tokens: int) -> None:
        self.seconds += step_s
        self.number += 1
        self.tokens += num_tokens
        self.gaps[bucket_of(gap_s)] += 1


def _told(totals: Mapping[str, int]) -> tuple[int, int, int]:
    return totals["num_steps"], totals["computed_prompt_tokens"], totals["generated_tokens"]


class StepMeter:
    """One thread notes what its engine does; any may ask, and is told of a step as a whole or not at all."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._prefill, self._decode = _Steps(), _Steps()
        self._began_at, self._before = 0.0, (0, 0, 0)
        self._step_s = 0.0
        self._last_landing_at: float | None = None

    def begin(self, now: float, totals: Mapping[str, int]) -> None:
        """A pass of the engine, whose totals these are (as in EngineCounters)."""
        self._began_at, self._before = now, _told(totals)
        if self._last_landing_at is None:
            self._last_landing_at = now

    def end(self, now: float, totals: Mapping[str, int], *, has_moved: bool) -> None:
        """A pass in which no step landed is part of the step that will, if it began any (has_moved), else of none."""
        if not has_moved or self._last_landing_at is None:
            self.rest()
            return
        self._step_s += now - self._began_at
        num_steps, num_prompt_tokens, num_said = map(sub, _told(totals), self._before)
        if num_steps:
            gap_s = now - self._last_landing_at
            with self._lock:
                if num_prompt_tokens:
                    self._prefill.count(self._step_s, gap_s, num_prompt_tokens)
                else:
                    self._decode.count(self._step_s, gap_s, num_said)
            self._step_s, self._last_landing_at = 0.0, now

    def rest(self) -> None:
        """Nobody waits for the next step from now on."""
        self._step_s, self._last_landing_at = 0.0, None

    def times(self) -> StepTimes:
        with self._lock:
            return StepTimes(
                prefill_s=self._prefill.seconds,
                prefill_steps=self._prefill.number,
                prefill_tokens=self._prefill.tokens,
                prefill_gaps=tuple(self._prefill.gaps),
                decode_s=self._decode.seconds,
                decode_steps=self._decode.number,
                decode_tokens=self._decode.tokens,
                decode_gaps=tuple(self._decode.gaps),
            )
