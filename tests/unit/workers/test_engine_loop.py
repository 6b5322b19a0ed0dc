"""The thread that owns an engine: what it runs, what it reports, and when it counts as hung."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from kvasir_protocol.events import TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.step_lengths import bucket_of
from kvasir_workers.engine import Engine
from kvasir_workers.engine_loop import STUCK_AFTER_S, EngineLoop
from tests.unit.workers.fakes import Clock

DEADLINE_S = 10.0


class FakeEngine:
    """Has as many steps to do as the test says; a step does what the test says."""

    def __init__(self) -> None:
        self.steps_left = 0
        self.num_moves = 0
        self.totals = Counter[str]()
        self.num_running = 3
        self.is_closed = False
        self.on_step: Callable[[], None] = lambda: None
        self.is_starved = False
        self.audited = threading.Event()
        self.on_audit: Callable[[], None] = lambda: None

    @property
    def has_work(self) -> bool:
        return self.steps_left > 0

    def step(self) -> list[TokenOutput]:
        self.on_step()
        if self.is_starved:
            return []
        self.steps_left -= 1
        self.num_moves += 1
        self.totals["num_steps"] += 1
        return [TokenOutput(request_id=RequestId("r"), first_index=self.num_moves, token_ids=(1,))]

    def close(self) -> None:
        self.is_closed = True

    def audit(self) -> None:
        self.audited.set()
        self.on_audit()


class House:
    """A running loop over a fake engine."""

    def __init__(self) -> None:
        self.engine, self.clock = FakeEngine(), Clock()
        self.delivered: list[TokenOutput] = []
        self.on_deliver: Callable[[], None] = lambda: None
        self.do_idle_work: Callable[[], bool] = lambda: False
        self.loop = EngineLoop(cast(Engine, self.engine), self.deliver, self.clock, lambda: self.do_idle_work())
        self.loop.start()

    def deliver(self, outputs: list[TokenOutput]) -> None:
        self.delivered += outputs
        self.on_deliver()

    def run(self, command: Callable[[FakeEngine], object]) -> None:
        """Post a command and wait until it is done."""
        done = threading.Event()
        self.loop.post(lambda engine: (command(cast(FakeEngine, engine)), done.set()))
        assert done.wait(DEADLINE_S)

    def work(self, num_steps: int) -> None:
        def give(engine: FakeEngine) -> None:
            engine.steps_left = num_steps

        self.run(give)


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.engine.steps_left = 0
    made.loop.stop()


def stopped(house: House) -> str | None:
    """What is reported once the thread is gone."""
    house.loop.stop()
    return house.loop.failure()


def test_commands_run_in_order_on_one_other_thread(house: House) -> None:
    ran: list[tuple[int, str]] = []
    for i in range(5):
        house.loop.post(lambda engine, i=i: ran.append((i, threading.current_thread().name)))
    house.run(lambda engine: None)
    assert ran == [(i, "engine") for i in range(5)]


def test_outputs_of_each_step_are_delivered(house: House) -> None:
    house.work(3)
    house.run(lambda engine: None)
    house.loop.stop()
    assert [output.first_index for output in house.delivered] == list(range(1, len(house.delivered) + 1))
    assert house.delivered


def test_commands_run_between_two_steps(house: House) -> None:
    in_step, go_on = threading.Event(), threading.Event()
    ran: list[int] = []

    def block_first() -> None:
        if house.engine.num_moves == 0:
            in_step.set()
            go_on.wait(DEADLINE_S)

    house.engine.on_step = block_first
    house.work(5)
    assert in_step.wait(DEADLINE_S)
    house.loop.post(lambda engine: ran.append(engine.num_moves))
    assert ran == []
    go_on.set()
    house.run(lambda engine: None)
    assert ran == [1]


def test_all_is_well_while_nothing_goes_wrong(house: House) -> None:
    house.work(3)
    assert house.loop.failure() is None
    assert stopped(house) is None


def fail() -> None:
    raise RuntimeError("boom")


def test_step_that_raises_is_reported(house: House) -> None:
    house.engine.on_step = fail
    house.work(1)
    assert stopped(house) == "RuntimeError: boom"


def test_command_that_raises_is_reported(house: House) -> None:
    house.loop.post(lambda engine: fail())
    house.loop._thread.join(DEADLINE_S)
    assert house.loop.failure() == "RuntimeError: boom"


def test_delivery_that_raises_is_reported(house: House) -> None:
    house.on_deliver = fail
    house.work(1)
    house.loop._thread.join(DEADLINE_S)
    assert house.loop.failure() == "RuntimeError: boom"


def test_books_are_checked_when_idle_and_an_error_is_reported(house: House) -> None:
    house.engine.on_audit = fail
    house.run(lambda engine: None)
    assert house.engine.audited.wait(DEADLINE_S)
    house.loop._thread.join(DEADLINE_S)
    assert house.loop.failure() == "RuntimeError: boom"


def test_idle_work_is_done_to_its_end(house: House) -> None:
    portions = iter(range(5))
    done = threading.Event()

    def work() -> bool:
        has_more = next(portions, None) is not None
        if not has_more:
            done.set()
        return has_more

    house.do_idle_work = work
    house.run(lambda engine: None)
    assert done.wait(DEADLINE_S)
    assert next(portions, None) is None


def test_commands_and_steps_come_before_idle_work_that_never_ends(house: House) -> None:
    house.do_idle_work = lambda: True
    house.work(3)
    house.run(lambda engine: None)
    assert [output.first_index for output in house.delivered] == [1, 2, 3]


def test_idle_work_does_not_hold_up_the_end(house: House) -> None:
    house.do_idle_work = lambda: True
    house.run(lambda engine: None)
    assert house.loop.stop()


def test_idle_work_that_raises_is_reported(house: House) -> None:
    house.do_idle_work = lambda: bool(fail())
    house.run(lambda engine: None)
    house.loop._thread.join(DEADLINE_S)
    assert house.loop.failure() == "RuntimeError: boom"


def hang(house: House) -> threading.Event:
    """Wait until a step has begun that ends only when the event is set."""
    in_step, go_on = threading.Event(), threading.Event()

    def block() -> None:
        in_step.set()
        go_on.wait(DEADLINE_S)

    house.engine.on_step = block
    house.work(1)
    assert in_step.wait(DEADLINE_S)
    return go_on


def test_hung_step_is_reported_after_a_while(house: House) -> None:
    go_on = hang(house)
    house.clock.now += STUCK_AFTER_S
    before = house.loop.failure()
    house.clock.now += 1
    after = house.loop.failure()
    go_on.set()
    assert (before, after) == (None, "no step finished for 61 s with 3 sequences running")


def test_hung_step_is_left_behind_at_the_end(house: House) -> None:
    go_on = hang(house)
    house.loop.stop(patience_s=0.1)
    is_left = house.loop._thread.is_alive()
    go_on.set()
    assert is_left


def test_finished_step_is_progress(house: House) -> None:
    in_step, go_on = threading.Event(), threading.Event()

    def block_second() -> None:
        if house.engine.num_moves == 1:
            in_step.set()
            go_on.wait(DEADLINE_S)
        else:
            house.clock.now += STUCK_AFTER_S - 1

    house.engine.on_step = block_second
    house.work(2)
    assert in_step.wait(DEADLINE_S)
    house.clock.now += 2
    assert house.loop.failure() is None
    go_on.set()


def test_steps_that_compute_nothing_are_no_progress(house: House) -> None:
    house.engine.is_starved = True
    house.work(1)
    house.clock.now += STUCK_AFTER_S + 1
    assert house.loop.failure() == "no step finished for 61 s with 3 sequences running"


def test_idle_loop_is_not_hung(house: House) -> None:
    house.run(lambda engine: None)
    house.clock.now += 1e6
    assert house.loop.failure() is None


def test_work_after_a_long_rest_starts_with_full_patience(house: House) -> None:
    house.run(lambda engine: None)
    house.clock.now += 1e6
    go_on = hang(house)
    assert house.loop.failure() is None
    go_on.set()


@pytest.mark.parametrize("num_prompt_tokens", [0, 5])
def test_steps_are_timed_by_whether_they_computed_prompts(house: House, num_prompt_tokens: int) -> None:
    def compute() -> None:
        house.clock.now += 0.25
        house.engine.totals["computed_prompt_tokens"] += num_prompt_tokens

    house.engine.on_step = compute
    landed = threading.Event()
    house.on_deliver = lambda: landed.set() if len(house.delivered) == 2 else None
    house.work(2)
    assert landed.wait(DEADLINE_S)
    house.loop.stop()
    times = house.loop.times()
    in_prefill, in_decode = (times.prefill_s, times.prefill_steps), (times.decode_s, times.decode_steps)
    assert (in_prefill, in_decode) == (((0.5, 2), (0, 0)) if num_prompt_tokens else ((0, 0), (0.5, 2)))


def test_rest_between_two_steps_is_no_time_between_tokens(house: House) -> None:
    def compute() -> None:
        house.clock.now += 0.25

    house.engine.on_step = compute
    for number in (1, 2):
        at_rest = threading.Event()
        house.do_idle_work = lambda n=number, done=at_rest: n == house.engine.num_moves and bool(done.set())  # type: ignore[misc]
        house.work(1)
        assert at_rest.wait(DEADLINE_S)
        house.clock.now += 1.0
    house.loop.stop()
    assert house.loop.times().decode_gaps[bucket_of(0.25)] == 2
