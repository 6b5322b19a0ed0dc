"""When a step runs: at once in a thread of its own, or when its end is waited for."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar
from weakref import finalize

from kvasir_workers.runner.grammar_mask import GrammarMasks

T = TypeVar("T")

Masks = Callable[[], GrammarMasks | None]
"""Makes the masks of a step's structured rows, or waits for them."""

Work = Callable[[Masks], T]


class StepInThread(Generic[T]):
    """A step that a DeviceThread runs; see `StepFlight` in device.py."""

    def __init__(self, work: Work[T]) -> None:
        self._work = work
        self._masks: Future[GrammarMasks | None] = Future()
        self._result: Future[T] = Future()

    def run(self) -> None:
        """Called by the thread."""
        try:
            self._result.set_result(self._work(self._masks.result))
        except BaseException as error:
            self._result.set_exception(error)

    def allow(self, make_masks: Masks | None) -> None:
        if not self._masks.done():
            self._masks.set_result(make_masks() if make_masks is not None else None)

    def land(self) -> T:
        return self._result.result()


class StepInPlace(Generic[T]):
    """A step that runs in the caller's thread when it is landed; its masks are made in another one meanwhile."""

    def __init__(self, work: Work[T], mask_thread: ThreadPoolExecutor) -> None:
        self._work = work
        self._mask_thread = mask_thread
        self._masks: Masks = _no_masks

    def allow(self, make_masks: Masks | None) -> None:
        if make_masks is not None:
            self._masks = self._mask_thread.submit(make_masks).result

    def land(self) -> T:
        return self._work(self._masks)


def _no_masks() -> None:
    return None


class CallersThread(Generic[T]):
    """Runs steps in the thread that lands them."""

    def __init__(self) -> None:
        self._mask_thread = ThreadPoolExecutor(1, thread_name_prefix="masks")

    def launch(self, work: Work[T]) -> StepInPlace[T]:
        return StepInPlace(work, self._mask_thread)


class DeviceThread(Generic[T]):
    """Runs steps in the order in which they are launched. It ends with its owner, or with its process."""

    def __init__(self) -> None:
        self._steps: SimpleQueue[StepInThread[T] | None] = SimpleQueue()
        Thread(target=_run_all, args=(self._steps,), name="device", daemon=True).start()
        finalize(self, self._steps.put, None)

    def launch(self, work: Work[T]) -> StepInThread[T]:
        step = StepInThread(work)
        self._steps.put(step)
        return step


Steps = CallersThread[T] | DeviceThread[T]


def _run_all(steps: SimpleQueue[StepInThread[T] | None]) -> None:
    while (step := steps.get()) is not None:
        step.run()
        del step
