"""The thread that owns an engine: commands in, outputs out, and proof of progress."""

import logging
import time
from collections import deque
from collections.abc import Callable
from threading import Event, Thread

from kvasir_protocol.events import StepTimes, TokenOutput
from kvasir_workers.engine import Engine
from kvasir_workers.idle_work import IdleWork, nothing_to_do
from kvasir_workers.step_meter import StepMeter

_log = logging.getLogger(__name__)

_STARVED_PAUSE_S = 0.002
"""Pause when no sequence could run because all pages are promised to hand-overs."""

_IDLE_AUDIT_AFTER_S = 1.0

STUCK_AFTER_S = 60.0
"""A step longer than this counts as hung: the longest honest one is a full prefill chunk of a large model on CPU."""

FAREWELL_S = 5.0
"""For the last step to end; one that hangs never does, and must not keep its process from ending."""

Command = Callable[[Engine], object]


class EngineLoop:
    """Runs an engine's steps while it has work; deliver gets each step's outputs, on the engine's thread.

    idle_work: called on that thread while there are no steps to run, for as long as it returns that more is to be done;
    what comes meanwhile waits for one call.
    """

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[list[TokenOutput]], None],
        clock: Callable[[], float] = time.monotonic,
        idle_work: IdleWork = nothing_to_do,
    ) -> None:
        self._engine = engine
        self._idle_work = idle_work
        self._deliver = deliver
        self._clock = clock
        self._commands: deque[Command] = deque()
        self._bell = Event()
        self._is_stopping = False
        self._failure: str | None = None
        self._last_progress = self._clock()
        self._meter = StepMeter()
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, command: Command) -> None:
        """Run a command on the engine's thread, between two steps; in order."""
        self._commands.append(command)
        self._bell.set()

    def stop(self, patience_s: float = FAREWELL_S) -> bool:
        """End after the step that runs. False if that takes too long: then something still computes."""
        self._is_stopping = True
        self._bell.set()
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def times(self) -> StepTimes:
        """What its steps took; any thread may ask."""
        return self._meter.times()

    def failure(self) -> str | None:
        """Why the loop is dead or makes no progress though there is work; None while all is well."""
        if self._failure is not None:
            return self._failure
        stuck_s = self._clock() - self._last_progress
        if self._engine.has_work and stuck_s > STUCK_AFTER_S:
            return f"no step finished for {stuck_s:.0f} s with {self._engine.num_running} sequences running"
        return None

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._run_commands()
                if self._engine.has_work:
                    self._step()
                else:
                    self._wait()
            self._engine.close()
        except Exception as error:
            _log.exception("the engine died")
            self._failure = f"{type(error).__name__}: {error}"

    def _run_commands(self) -> None:
        while self._commands:
            self._commands.popleft()(self._engine)

    def _step(self) -> None:
        num_moves = self._engine.num_moves
        self._meter.begin(self._clock(), self._engine.totals)
        outputs = self._engine.step()
        has_moved = self._engine.num_moves > num_moves
        self._meter.end(self._clock(), self._engine.totals, has_moved=has_moved)
        if outputs:
            self._deliver(outputs)
        if has_moved:
            self._last_progress = self._clock()
        else:
            time.sleep(_STARVED_PAUSE_S)

    def _wait(self) -> None:
        """Sleep until a command comes; do idle work before, and check the books once in each quiet time."""
        while not self._bell.is_set() and self._idle_work():
            pass
        self._last_progress = self._clock()
        if not self._bell.wait(_IDLE_AUDIT_AFTER_S):
            self._engine.audit()
            self._bell.wait()
        self._bell.clear()
        self._meter.rest()
        self._last_progress = self._clock()
