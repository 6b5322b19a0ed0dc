"""When each request of an open loop is sent."""

import math
import random
from dataclasses import dataclass
from typing import Literal

RampStrategy = Literal["linear", "exponential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """Requests per second grow from start to end, by an equal step or by an equal factor with each request."""

    strategy: RampStrategy
    start_rps: float
    end_rps: float

    def rate(self, progress: float) -> float:
        """progress: 0 at the first request, 1 at the last."""
        match self.strategy:
            case "linear":
                return self.start_rps + (self.end_rps - self.start_rps) * progress
            case "exponential":
                return self.start_rps * float((self.end_rps / self.start_rps) ** progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """request_rate: per second; infinite sends all at once. burstiness: shape of the gamma distribution of the gaps;
    1 is a Poisson process, less comes in bursts, more is more even, infinite is regular. ramp: instead of a rate."""

    request_rate: float = math.inf
    burstiness: float = 1.0
    ramp: Ramp | None = None

    def offsets_s(self, num_requests: int, seed: int) -> list[float]:
        """Seconds from the start to each request, ascending.

        Without a ramp they are stretched so that the last comes at num_requests / request_rate: runs of different
        seeds then offer the same load (as vLLM does).
        """
        draw = random.Random(seed)
        offsets: list[float] = []
        now = 0.0
        for index in range(num_requests):
            now += self._gap_s(self._rate(index / max(num_requests - 1, 1)), draw)
            offsets.append(now)
        if self.ramp is None and now > 0:
            factor = num_requests / self.request_rate / now
            return [offset * factor for offset in offsets]
        return offsets

    def _rate(self, progress: float) -> float:
        return self.request_rate if self.ramp is None else self.ramp.rate(progress)

    def _gap_s(self, rate: float, draw: random.Random) -> float:
        if math.isinf(rate):
            return 0.0
        if math.isinf(self.burstiness):
            return 1.0 / rate
        return draw.gammavariate(self.burstiness, 1.0 / (rate * self.burstiness))
