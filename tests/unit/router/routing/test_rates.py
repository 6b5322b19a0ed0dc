"""Rates out of totals, with a clock turned by hand."""

import pytest

from kvasir_protocol.events import EngineCounters, HandoverCounters, ReplicaStats, StepTimes
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.step_lengths import BOUNDS_S, NUM_BUCKETS
from kvasir_router.routing.fading import HALF_LIFE_S
from kvasir_router.routing.rates import UNKNOWN, RateMeter


def gaps(num_brief: float, num_long: float) -> tuple[int, ...]:
    """Steps in the shortest and in the longest bucket."""
    return int(num_brief), *[0] * (NUM_BUCKETS - 2), int(num_long)


class House:
    """A meter, its clock, and the totals of a replica."""

    def __init__(self) -> None:
        self.now = 100.0
        self.meter = RateMeter(lambda: self.now)
        self.totals: dict[str, float] = dict.fromkeys(
            (
                "steps",
                "said",
                "tokens",
                "prefill_s",
                "prefill_steps",
                "decode_s",
                "decode_steps",
                "long_steps",
                "requests",
                "pushed_tokens",
                "push_s",
                "exposed_s",
            ),
            0,
        )
        self.tell()

    def tell(self, **more: float) -> None:
        """The replica has done more, and says so."""
        for name, value in {"steps": 1, **more}.items():
            self.totals[name] += value
        self.note(self.totals)

    def note(self, totals: dict[str, float]) -> None:
        self.meter.note(
            ReplicaStats(
                replica_id=ReplicaId("r"),
                num_running=0,
                num_waiting=0,
                num_pages=1,
                num_used_pages=0,
                engine=EngineCounters(num_steps=int(totals["steps"])),
                handover=HandoverCounters(
                    pushed_requests=int(totals["requests"]),
                    pushed_tokens=int(totals["pushed_tokens"]),
                    push_s=totals["push_s"],
                    exposed_s=totals["exposed_s"],
                ),
                resident_bytes=0,
                step_times=StepTimes(
                    prefill_tokens=int(totals["tokens"]),
                    decode_tokens=int(totals["said"]),
                    prefill_s=totals["prefill_s"],
                    prefill_steps=int(totals["prefill_steps"]),
                    decode_s=totals["decode_s"],
                    decode_steps=int(totals["decode_steps"]),
                    prefill_gaps=gaps(totals["prefill_steps"] - totals["long_steps"], totals["long_steps"]),
                    decode_gaps=gaps(totals["decode_steps"], 0),
                ),
            )
        )


@pytest.fixture
def house() -> House:
    return House()


def test_nothing_is_known_at_first(house: House) -> None:
    assert house.meter.rates() == UNKNOWN


def test_totals_before_the_first_word_do_not_count() -> None:
    house = House()
    house.meter = RateMeter(lambda: house.now)
    house.tell(tokens=5000, prefill_s=1.0)
    assert house.meter.rates() == UNKNOWN


def test_rates_are_those_of_what_was_done_since(house: House) -> None:
    house.tell(
        tokens=200,
        prefill_s=0.1,
        decode_s=0.5,
        decode_steps=100,
        requests=2,
        pushed_tokens=100,
        push_s=0.02,
        exposed_s=0.006,
    )
    rates = house.meter.rates()
    assert rates.prefill_tokens_per_s == pytest.approx(2000)
    assert rates.decode_step is not None
    assert rates.decode_step.seconds == pytest.approx(0.005)
    assert rates.push_s_per_token == pytest.approx(0.0002)
    assert rates.handover_s == pytest.approx(0.003)


def test_what_a_stream_adds_to_a_step_is_seen_where_their_number_changes(house: House) -> None:
    for num_streams, step_s in ((2, 0.002), (6, 0.004)):
        house.tell(steps=100, said=100 * num_streams, decode_steps=100, decode_s=100 * step_s)
    step = house.meter.rates().decode_step
    assert step is not None
    assert (step.num_streams, step.seconds) == (pytest.approx(4), pytest.approx(0.003))
    assert step.s_per_stream == pytest.approx(0.0005)


@pytest.mark.parametrize(
    ("points", "s_per_stream"),
    [
        (((4, 0.003), (4, 0.005)), 0.0),
        (((2, 0.004), (6, 0.002)), 0.0),
        (((2, 0.001), (6, 0.009)), 0.9 * 0.005 / 4),
    ],
    ids=["always as many", "fewer take longer", "none would take less than nothing"],
)
def test_what_a_stream_adds_is_never_more_than_can_be(
    house: House, points: tuple[tuple[int, float], ...], s_per_stream: float
) -> None:
    for num_streams, step_s in points:
        house.tell(steps=100, said=100 * num_streams, decode_steps=100, decode_s=100 * step_s)
    step = house.meter.rates().decode_step
    assert step is not None
    assert step.s_per_stream == pytest.approx(s_per_stream)


def test_steps_with_prompts_are_counted_by_the_clock(house: House) -> None:
    assert house.meter.rates().prefill_steps_per_s is None
    house.now += 0.5
    house.tell(prefill_steps=3)
    assert house.meter.rates().prefill_steps_per_s == pytest.approx(6)
    house.now += 0.5
    house.tell()
    assert house.meter.rates().prefill_steps_per_s == pytest.approx(3, rel=0.02)


def test_steps_with_prompts_are_long_beside_those_without(house: House) -> None:
    house.now += 0.5
    house.tell(prefill_steps=3)
    assert house.meter.rates().long_steps_per_s == pytest.approx(6)
    house.tell(prefill_steps=1, long_steps=1, decode_steps=200, decode_s=0.2)
    rates = house.meter.rates()
    assert rates.usual_gap_s == BOUNDS_S[0]
    assert rates.prefill_steps_per_s is not None
    assert rates.long_steps_per_s == pytest.approx(rates.prefill_steps_per_s / 4)


def test_step_with_prompts_takes_what_such_steps_took(house: House) -> None:
    house.tell(prefill_steps=4, prefill_s=0.2)
    assert house.meter.rates().prefill_step_s == pytest.approx(0.05)


def test_what_is_usual_is_forgotten_in_time_though_nothing_is_told(house: House) -> None:
    house.tell(prefill_steps=1, decode_steps=150, decode_s=0.3)
    assert house.meter.rates().usual_gap_s == BOUNDS_S[0]
    house.now += HALF_LIFE_S
    assert house.meter.rates().usual_gap_s is None


def test_new_process_after_a_long_silence_finds_nothing_usual(house: House) -> None:
    house.tell(decode_steps=150, decode_s=0.3)
    house.now += HALF_LIFE_S
    house.note(dict.fromkeys(house.totals, 0))
    assert house.meter.rates().usual_gap_s is None


def test_newer_counts_more_than_older(house: House) -> None:
    house.tell(tokens=100, prefill_s=0.1)
    house.now += HALF_LIFE_S
    house.tell(tokens=400, prefill_s=0.1)
    assert house.meter.rates().prefill_tokens_per_s == pytest.approx((50 + 400) / (0.05 + 0.1))


def test_bad_hand_over_is_forgotten_in_time(house: House) -> None:
    house.tell(requests=1, exposed_s=9.0)
    assert house.meter.rates().handover_s == pytest.approx(9.0)
    house.now += 4 * HALF_LIFE_S
    assert house.meter.rates().handover_s is None


def test_tokens_that_were_not_pushed_do_not_make_the_link_look_fast(house: House) -> None:
    house.tell(tokens=1000, prefill_s=1.0, requests=1, pushed_tokens=100, push_s=0.01)
    assert house.meter.rates().push_s_per_token == pytest.approx(0.0001)


def test_time_of_a_step_that_was_counted_a_moment_ago_is_no_trouble(house: House) -> None:
    house.tell(decode_steps=1, decode_s=0.002, said=3, steps=0)
    step = house.meter.rates().decode_step
    assert step is not None
    assert (step.seconds, step.num_streams) == (pytest.approx(0.002), 3)


def test_new_process_begins_anew_and_what_was_learnt_stays(house: House) -> None:
    house.tell(tokens=200, prefill_s=0.1)
    house.note(dict.fromkeys(house.totals, 0))
    assert house.meter.rates().prefill_tokens_per_s == pytest.approx(2000)
