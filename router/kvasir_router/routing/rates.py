"""How fast a replica is at what it does, measured from the totals that it tells."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from kvasir_protocol.events import ReplicaStats

HALF_LIFE_S = 20.0
"""What was measured so long ago counts half: loads change within minutes, and a few requests must not decide alone."""


MEMORY_S = HALF_LIFE_S / math.log(2)
"""What happens at a steady rate happens as often in so many seconds as the meter remembers of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """Steps that compute no prompt: what one takes, for how many streams it was, and what one stream more would add."""

    seconds: float
    num_streams: float
    s_per_stream: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Of all its streams together."""
        return self.num_streams / self.seconds

    def seconds_at(self, tokens_per_s: float) -> float:
        """What a step takes where streams ask for so many tokens a second together, at most what is asked for here.

        There are then as many streams as tokens are asked for in the time of a step (Little's law).
        """
        base_s = self.seconds - self.s_per_stream * self.num_streams
        return base_s / (1 - self.s_per_stream * min(tokens_per_s, self.tokens_per_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRates:
    """None: not measured (yet, or not for long).

    prefill_tokens_per_s: prompt tokens in the steps that had any. prefill_steps_per_s: such steps in a second of the
    clock's. prefill_step_s: what one of them takes. decode_step: the others.
    push_s_per_token: what a pushed prompt token kept the link. handover_s: from the last chunk of a prompt to its last
    page, for the prompts that were pushed.
    """

    prefill_tokens_per_s: float | None = None
    prefill_steps_per_s: float | None = None
    prefill_step_s: float | None = None
    decode_step: DecodeStep | None = None
    push_s_per_token: float | None = None
    handover_s: float | None = None


UNKNOWN = ReplicaRates()


class _Ratio:
    """The quotient of two sums in which older summands count less."""

    def __init__(self) -> None:
        self._above = 0.0
        self._below = 0.0

    def fade(self, factor: float) -> None:
        self._above *= factor
        self._below *= factor

    def add(self, above: float, below: float) -> None:
        if below > 0:
            self._above += above
            self._below += below

    def value(self, least_below: float) -> float | None:
        """None while what was divided by is less than least_below: too little was seen, or too long ago."""
        return self._above / self._below if self._below >= least_below else None


class _Line:
    """The straight line through points of which older ones count less (weighed least squares)."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def fade(self, factor: float) -> None:
        self._weight, self._x, self._y = self._weight * factor, self._x * factor, self._y * factor
        self._xx, self._xy = self._xx * factor, self._xy * factor

    def add(self, x: float, y: float, weight: float) -> None:
        self._weight, self._x, self._y = self._weight + weight, self._x + weight * x, self._y + weight * y
        self._xx, self._xy = self._xx + weight * x * x, self._xy + weight * x * y

    def decode_step(self, least_weight: float) -> DecodeStep | None:
        """For points of streams and seconds; None while they weigh less than least_weight."""
        if self._weight < least_weight:
            return None
        x, y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - x * x
        slope = (self._xy / self._weight - x * y) / variance if variance > _LEAST_VARIANCE else 0.0
        s_per_stream = min(max(slope, 0.0), _MOST_OF_STREAMS * y / x) if x else 0.0
        return DecodeStep(seconds=y, num_streams=x, s_per_stream=s_per_stream)


_LEAST_VARIANCE = 0.01
"""Of the number of streams: where it was always the same, nothing is known of others."""

_MOST_OF_STREAMS = 0.9
"""Of a step's time, that may be the streams': there is always something that all share."""

_LEAST_SECONDS = 1e-3
_LEAST_EVENTS = 0.1
"""A single hand-over is forgotten after three and a half half-lives, so that one bad moment does not close the road
for ever."""


class RateMeter:
    """Rates of one replica, from Stats after Stats. clock counts seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: ReplicaStats | None = None
        self._faded_at = self._noted_at = clock()
        self._prefill, self._prefill_steps, self._prefill_step = _Ratio(), _Ratio(), _Ratio()
        self._push, self._handover = _Ratio(), _Ratio()
        self._decode = _Line()

    def note(self, stats: ReplicaStats) -> None:
        """The replica's latest totals; smaller ones than before are those of a new process."""
        self._fade()
        last, self._last = self._last, stats
        elapsed_s, self._noted_at = self._clock() - self._noted_at, self._clock()
        if last is None or stats.engine.num_steps < last.engine.num_steps:
            return
        now, before = stats.step_times, last.step_times
        num_prompt_tokens = stats.engine.computed_prompt_tokens - last.engine.computed_prompt_tokens
        num_steps, steps_s = now.prefill_steps - before.prefill_steps, now.prefill_s - before.prefill_s
        self._prefill_steps.add(num_steps, elapsed_s)
        self._prefill_step.add(steps_s, num_steps)
        self._prefill.add(num_prompt_tokens, steps_s)
        self._note_decodes(stats, last)
        pushed, pushed_before = stats.handover, last.handover
        num_requests = pushed.pushed_requests - pushed_before.pushed_requests
        if num_requests > 0:
            self._push.add(pushed.push_s - pushed_before.push_s, num_prompt_tokens)
            self._handover.add(pushed.exposed_s - pushed_before.exposed_s, num_requests)

    def _note_decodes(self, stats: ReplicaStats, last: ReplicaStats) -> None:
        num_decodes = stats.step_times.decode_steps - last.step_times.decode_steps
        decode_s = stats.step_times.decode_s - last.step_times.decode_s
        if num_decodes > 0 and decode_s > 0:
            num_tokens = stats.engine.generated_tokens - last.engine.generated_tokens
            num_streams = num_tokens / (stats.engine.num_steps - last.engine.num_steps)
            self._decode.add(num_streams, decode_s / num_decodes, num_decodes)

    def rates(self) -> ReplicaRates:
        self._fade()
        return ReplicaRates(
            prefill_tokens_per_s=self._prefill.value(_LEAST_SECONDS),
            prefill_steps_per_s=self._prefill_steps.value(_LEAST_SECONDS),
            prefill_step_s=self._prefill_step.value(_LEAST_EVENTS),
            decode_step=self._decode.decode_step(_LEAST_EVENTS),
            push_s_per_token=self._push.value(_LEAST_EVENTS),
            handover_s=self._handover.value(_LEAST_EVENTS),
        )

    def _fade(self) -> None:
        now = self._clock()
        factor = 0.5 ** ((now - self._faded_at) / HALF_LIFE_S)
        self._faded_at = now
        prefills = self._prefill, self._prefill_steps, self._prefill_step
        for measured in (*prefills, self._decode, self._push, self._handover):
            measured.fade(factor)
