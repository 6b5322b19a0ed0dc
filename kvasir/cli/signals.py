"""Ctrl-C and SIGTERM as something to wait for."""

import os
import select
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(Exception):
    """Somebody wants the server to stop."""


class StopSignals:
    """Counts the wishes to stop; nothing is interrupted by them. A second one means: without waiting."""

    def __init__(self) -> None:
        self.num_requests = 0
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def install(self) -> None:
        """Take the handlers; again, after somebody else has taken them."""
        for number in STOP_SIGNALS:
            # nohup: the server is to outlive its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.num_requests += 1
        os.write(self._write_end, b".")

    def check(self) -> None:
        """Raise StopRequested if there was a wish."""
        if self.num_requests:
            raise StopRequested

    def wait(self, timeout_s: float) -> None:
        """Return after timeout_s; raise StopRequested as soon as there is a wish."""
        self.check()
        select.select([self._read_end], [], [], timeout_s)
        self.check()
