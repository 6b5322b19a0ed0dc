"""Waiting for a device, but not for ever: what it waits for itself may never come."""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

_LOOK_S = 5e-5
"""Between two looks: less than a step's plan takes."""


class DeviceEvent(Protocol):
    """Something that the device comes to after what it was told before."""

    def query(self) -> bool:
        """Whether it has come there."""
        ...


def wait_for_device(
    event: DeviceEvent,
    deadline_s: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Return when the device has come to the event. Raises RuntimeError if it has not within deadline_s."""
    give_up_at = clock() + deadline_s
    while not event.query():
        if clock() >= give_up_at:
            raise RuntimeError("the device still waits")
        pause(_LOOK_S)


class DeviceSteps:
    """What a device was told, step by step, and for how long it has been at the first that is not over."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[DeviceEvent] = deque()
        self._since = 0.0

    def begin(self, end: DeviceEvent) -> None:
        """The device was told another step, which is over at this event."""
        if not self._ends:
            self._since = self._clock()
        self._ends.append(end)

    def waited_s(self) -> float:
        """0 where nothing is to be done."""
        while self._ends and self._ends[0].query():
            self._ends.popleft()
            self._since = self._clock()
        return self._clock() - self._since if self._ends else 0.0
