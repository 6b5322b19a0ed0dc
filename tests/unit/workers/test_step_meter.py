"""Steps that are counted."""

from collections import Counter

import pytest

from kvasir_protocol.step_lengths import bucket_of
from kvasir_workers.step_meter import StepMeter


class House:
    """A meter, and the engine whose passes it is told of."""

    def __init__(self) -> None:
        self.meter = StepMeter()
        self.now = 0.0
        self.totals = Counter[str]()

    def run(self, seconds: float, *, steps: int = 1, prompt_tokens: int = 0, said: int = 0) -> None:
        self.meter.begin(self.now, self.totals)
        self.now += seconds
        self.totals.update(num_steps=steps, computed_prompt_tokens=prompt_tokens, generated_tokens=said)
        self.meter.end(self.now, self.totals, has_moved=True)

    def starve(self, seconds: float) -> None:
        self.meter.begin(self.now, self.totals)
        self.now += seconds
        self.meter.end(self.now, self.totals, has_moved=False)


@pytest.fixture
def house() -> House:
    return House()


def test_both_kinds_of_steps_are_counted_apart(house: House) -> None:
    house.run(0.25, prompt_tokens=30, said=1)
    house.run(0.5, prompt_tokens=20)
    house.run(0.125, said=3)
    times = house.meter.times()
    assert (times.prefill_s, times.prefill_steps, times.prefill_tokens) == (0.75, 2, 50)
    assert (times.decode_s, times.decode_steps, times.decode_tokens) == (0.125, 1, 3)
    assert (sum(times.prefill_gaps), sum(times.decode_gaps)) == (2, 1)


def test_what_is_done_between_two_steps_lies_between_their_tokens(house: House) -> None:
    house.run(0.25)
    house.now += 1.0
    house.run(0.25)
    times = house.meter.times()
    assert times.decode_s == 0.5
    assert (times.decode_gaps[bucket_of(0.25)], times.decode_gaps[bucket_of(1.25)]) == (1, 1)


def test_rest_lies_between_no_tokens(house: House) -> None:
    house.run(0.25)
    house.meter.rest()
    house.now += 1.0
    house.run(0.25)
    assert house.meter.times().decode_gaps[bucket_of(0.25)] == 2


def test_pass_that_only_sends_a_step_off_is_part_of_it(house: House) -> None:
    house.run(0.25, steps=0)
    house.run(0.5)
    times = house.meter.times()
    assert (times.decode_s, times.decode_steps) == (0.75, 1)
    assert times.decode_gaps[bucket_of(0.75)] == 1


def test_pass_without_any_step_counts_for_nothing(house: House) -> None:
    house.run(0.25)
    house.starve(0.5)
    house.run(0.25)
    times = house.meter.times()
    assert (times.decode_s, times.decode_steps) == (0.5, 2)
    assert times.decode_gaps[bucket_of(0.25)] == 2


def test_what_an_engine_did_before_it_was_watched_does_not_count(house: House) -> None:
    house.totals.update(num_steps=5, computed_prompt_tokens=70, generated_tokens=7)
    house.run(0.1, said=2)
    times = house.meter.times()
    assert (times.prefill_tokens, times.decode_tokens) == (0, 2)


def test_what_was_told_stays_as_it_was(house: House) -> None:
    before = house.meter.times()
    house.run(0.1)
    assert sum(before.decode_gaps) == 0
