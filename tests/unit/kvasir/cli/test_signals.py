import os
import signal

import pytest

from kvasir.cli.signals import STOP_SIGNALS, StopRequested, StopSignals


@pytest.fixture
def stop():
    # As a shell starts a command; nohup would have it ignore one of them.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    stop = StopSignals()
    stop.install()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


def test_without_a_signal_the_wait_ends_with_its_time(stop):
    stop.wait(0.0)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_ends_the_wait_at_once(stop, number):
    os.kill(os.getpid(), number)
    with pytest.raises(StopRequested):
        stop.wait(1000.0)


def test_every_signal_is_counted_and_none_interrupts(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.num_requests == 2
    with pytest.raises(StopRequested):
        stop.check()
