"""How fast a replica is at what it does, measured from the totals that it tells."""

from collections.abc import Callable
from dataclasses import dataclass

from kvasir_protocol.events import ReplicaStats
from kvasir_router.routing.decode_step import DecodeStep, StreamsLine
from kvasir_router.routing.fading import Ratio, fading
from kvasir_router.routing.gaps import GapMeter


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRates:
    """None: not measured (yet, or not for long).

    prefill_tokens_per_s: prompt tokens in the steps that had any. prefill_steps_per_s: such steps in a second of the
    clock's. prefill_step_s: what one of them takes. decode_step: the others. usual_gap_s: after what time 99 of 100 of
    those have followed the step before. long_steps_per_s: steps with prompts that took longer to follow; all of them
    while nothing is usual.
    push_s_per_token: what a pushed prompt token kept the link. handover_s: from the last chunk of a prompt to its last
    page, for the prompts that were pushed.
    """

    prefill_tokens_per_s: float | None = None
    prefill_steps_per_s: float | None = None
    prefill_step_s: float | None = None
    decode_step: DecodeStep | None = None
    usual_gap_s: float | None = None
    long_steps_per_s: float | None = None
    push_s_per_token: float | None = None
    handover_s: float | None = None


UNKNOWN = ReplicaRates()

_LEAST_SECONDS = 1e-3
_LEAST_EVENTS = 0.1
"""A single hand-over is forgotten after three and a half half-lives, so that one bad moment does not close the road
for ever."""


def _is_new(now: ReplicaStats, before: ReplicaStats) -> bool:
    """Whether these are totals of another process than the last ones."""
    return any(new < old for new, old in zip(_totals(now), _totals(before), strict=True))


def _totals(stats: ReplicaStats) -> tuple[float, ...]:
    times, pushed = stats.step_times, stats.handover
    counted = times.prefill_steps, times.prefill_tokens, times.decode_steps, times.decode_tokens, stats.engine.num_steps
    return *counted, times.prefill_s, times.decode_s, pushed.pushed_tokens, pushed.pushed_requests


class RateMeter:
    """Rates of one replica, from Stats after Stats. clock counts seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: ReplicaStats | None = None
        self._faded_at = self._noted_at = clock()
        self._prefill, self._prefill_steps, self._prefill_step = Ratio(), Ratio(), Ratio()
        self._push, self._handover = Ratio(), Ratio()
        self._decode = StreamsLine()
        self._gaps = GapMeter()

    def note(self, stats: ReplicaStats) -> None:
        """The replica's latest totals; smaller ones than before are those of a new process."""
        self._fade()
        last, self._last = self._last, stats
        elapsed_s, self._noted_at = self._clock() - self._noted_at, self._clock()
        if last is None or _is_new(stats, last):
            return
        now, before = stats.step_times, last.step_times
        num_steps, steps_s = now.prefill_steps - before.prefill_steps, now.prefill_s - before.prefill_s
        self._prefill_steps.add(num_steps, elapsed_s)
        self._prefill_step.add(steps_s, num_steps)
        self._prefill.add(now.prefill_tokens - before.prefill_tokens, steps_s)
        if num_decodes := now.decode_steps - before.decode_steps:
            num_streams = (now.decode_tokens - before.decode_tokens) / num_decodes
            self._decode.add(num_streams, (now.decode_s - before.decode_s) / num_decodes, num_decodes)
        self._gaps.note(now, before)
        pushed, pushed_before = stats.handover, last.handover
        self._push.add(pushed.push_s - pushed_before.push_s, pushed.pushed_tokens - pushed_before.pushed_tokens)
        num_requests = pushed.pushed_requests - pushed_before.pushed_requests
        self._handover.add(pushed.exposed_s - pushed_before.exposed_s, num_requests)

    def rates(self) -> ReplicaRates:
        self._fade()
        steps_per_s = self._prefill_steps.value(_LEAST_SECONDS)
        return ReplicaRates(
            prefill_tokens_per_s=self._prefill.value(_LEAST_SECONDS),
            prefill_steps_per_s=steps_per_s,
            prefill_step_s=self._prefill_step.value(_LEAST_EVENTS),
            decode_step=self._decode.decode_step(_LEAST_EVENTS),
            usual_gap_s=self._gaps.usual_gap_s,
            long_steps_per_s=None if steps_per_s is None else steps_per_s * self._gaps.share_long,
            push_s_per_token=self._push.value(_LEAST_EVENTS),
            handover_s=self._handover.value(_LEAST_EVENTS),
        )

    def _fade(self) -> None:
        now = self._clock()
        factor = fading(now - self._faded_at)
        self._faded_at = now
        prefills = self._prefill, self._prefill_steps, self._prefill_step
        for measured in (*prefills, self._decode, self._gaps, self._push, self._handover):
            measured.fade(factor)
