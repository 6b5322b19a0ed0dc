"""What a step without prompts takes, by how many streams it is for."""

from dataclasses import dataclass


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


class StreamsLine:
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
