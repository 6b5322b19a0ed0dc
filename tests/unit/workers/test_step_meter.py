"""Steps that are counted."""

from kvasir_protocol.step_lengths import bucket_of
from kvasir_workers.step_meter import StepMeter


def test_both_kinds_of_steps_are_counted_apart() -> None:
    meter = StepMeter()
    meter.count(0.25, 0.25, has_prompts=True)
    meter.count(0.5, 0.5, has_prompts=True)
    meter.count(0.125, 0.125, has_prompts=False)
    times = meter.times()
    assert (times.prefill_s, times.prefill_steps, times.decode_s, times.decode_steps) == (0.75, 2, 0.125, 1)
    assert (sum(times.prefill_gaps), sum(times.decode_gaps)) == (2, 1)


def test_what_lies_between_tokens_is_longer_than_a_step() -> None:
    meter = StepMeter()
    meter.count(0.1, 0.3, has_prompts=False)
    times = meter.times()
    assert times.decode_s == 0.1
    assert times.decode_gaps[bucket_of(0.3)] == 1


def test_what_was_told_stays_as_it_was() -> None:
    meter = StepMeter()
    before = meter.times()
    meter.count(0.1, 0.1, has_prompts=False)
    assert sum(before.decode_gaps) == 0
