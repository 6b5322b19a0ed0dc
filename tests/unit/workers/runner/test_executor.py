"""Steps run in order, wait for their masks only when they ask, and say what went wrong."""

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch

from kvasir_workers.runner.executor import CallersThread, DeviceThread, Masks
from kvasir_workers.runner.grammar_mask import GrammarMasks

MASKS = GrammarMasks(rows=(0,), bits=torch.zeros(1, 1, dtype=torch.int32))


def test_steps_run_in_the_order_of_their_launches() -> None:
    thread: DeviceThread[int] = DeviceThread()
    done: list[int] = []

    def work(number: int) -> Callable[[Masks], int]:
        def run(_: Masks) -> int:
            done.append(number)
            return number

        return run

    steps = [thread.launch(work(number)) for number in range(20)]
    assert [step.land() for step in reversed(steps)] == list(reversed(range(20)))
    assert done == list(range(20))


def test_step_waits_for_its_masks_when_it_asks_for_them() -> None:
    thread: DeviceThread[GrammarMasks | None] = DeviceThread()
    has_begun = threading.Event()

    def run(masks: Masks) -> GrammarMasks | None:
        has_begun.set()
        return masks()

    step = thread.launch(run)
    assert has_begun.wait(10)
    step.allow(None)
    assert step.land() is None


def test_error_of_a_step_is_raised_where_it_is_landed_and_the_next_step_runs() -> None:
    thread: DeviceThread[int] = DeviceThread()

    def fail(_: Masks) -> int:
        raise RuntimeError("the device is on fire")

    failing, next_one = thread.launch(fail), thread.launch(lambda _: 7)
    with pytest.raises(RuntimeError, match="on fire"):
        failing.land()
    assert next_one.land() == 7


def test_step_in_place_runs_when_it_is_landed() -> None:
    calls: list[int] = []
    step = CallersThread[None]().launch(lambda _: calls.append(1))
    step.allow(None)
    assert calls == []
    step.land()
    assert calls == [1]


def test_step_in_place_has_its_masks_made_while_it_runs() -> None:
    runs = threading.Event()

    def make_masks() -> GrammarMasks:
        assert runs.wait(10)
        return MASKS

    def run(masks: Masks) -> GrammarMasks | None:
        runs.set()
        return masks()

    step = CallersThread[GrammarMasks | None]().launch(run)
    step.allow(make_masks)
    assert step.land() is MASKS


def test_step_in_place_says_what_went_wrong_with_its_masks() -> None:
    def fail() -> GrammarMasks:
        raise RuntimeError("no masks today")

    step = CallersThread[GrammarMasks | None]().launch(lambda masks: masks())
    step.allow(fail)
    with pytest.raises(RuntimeError, match="no masks"):
        step.land()


def test_thread_ends_with_its_owner() -> None:
    owner: DeviceThread[threading.Thread] = DeviceThread()
    thread = owner.launch(lambda _: threading.current_thread()).land()
    known = weakref.ref(owner)
    del owner
    gc.collect()
    assert known() is None
    thread.join(10)
    assert not thread.is_alive()
