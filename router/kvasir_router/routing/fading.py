"""Sums in which older measurements count less."""

import math

HALF_LIFE_S = 20.0
"""What was measured so long ago counts half: loads change within minutes, and a few requests must not decide alone."""

MEMORY_S = HALF_LIFE_S / math.log(2)
"""What happens at a steady rate happens as often in so many seconds as the meter remembers of it."""


def fading(elapsed_s: float) -> float:
    """What is left of a measurement's weight after so long."""
    return float(0.5 ** (elapsed_s / HALF_LIFE_S))


class Ratio:
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
