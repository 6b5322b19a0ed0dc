"""How long anybody waits for a device."""

import pytest

from kvasir_workers.parallel.device_deadline import DeviceSteps, wait_for_device


class TurnedClock:
    """Time passes by pausing alone. It is an event, too, which comes at its time."""

    def __init__(self, comes_at: float = 0.0) -> None:
        self.now = 0.0
        self._comes_at = comes_at

    def read(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def query(self) -> bool:
        return self.now >= self._comes_at


def test_wait_ends_when_the_device_has_come() -> None:
    clock = TurnedClock(comes_at=0.5)
    wait_for_device(clock, 1.0, clock.read, clock.pause)
    assert clock.now == pytest.approx(0.5, abs=1e-3)


def test_nobody_pauses_for_what_is_there_already() -> None:
    clock = TurnedClock(comes_at=0.0)
    wait_for_device(clock, 0.0, clock.read, clock.pause)
    assert clock.now == 0.0


def test_wait_fails_after_the_deadline() -> None:
    clock = TurnedClock(comes_at=1e9)
    with pytest.raises(RuntimeError, match="the device still waits"):
        wait_for_device(clock, 1.0, clock.read, clock.pause)
    assert clock.now == pytest.approx(1.0, abs=1e-3)


class Flag:
    """An event that comes when it is told."""

    def __init__(self) -> None:
        self.has_come = False

    def query(self) -> bool:
        return self.has_come


def test_a_step_has_the_device_from_when_the_one_before_it_was_over() -> None:
    clock = TurnedClock()
    steps, first, second = DeviceSteps(clock.read), Flag(), Flag()
    steps.begin(first)
    clock.pause(3)
    steps.begin(second)
    assert steps.waited_s() == 3
    first.has_come = True
    assert steps.waited_s() == 0
    clock.pause(2)
    assert steps.waited_s() == 2


def test_nothing_is_waited_for_when_all_steps_are_over() -> None:
    clock = TurnedClock()
    steps, only = DeviceSteps(clock.read), Flag()
    steps.begin(only)
    only.has_come = True
    clock.pause(5)
    assert steps.waited_s() == 0
    steps.begin(Flag())
    assert steps.waited_s() == 0
