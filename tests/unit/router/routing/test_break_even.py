"""Where a prompt is computed with less delay."""

import pytest

from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import Role
from kvasir_router.routing.break_even import (
    DEFAULT_HANDOVER_S,
    MOST_BRIEFLY_HELD_UP,
    MOST_HELD_UP,
    delay_at_decode,
    delay_at_prefill,
    share_held_up,
    weigh,
)
from kvasir_router.routing.decode_step import DecodeStep
from kvasir_router.routing.fading import MEMORY_S
from kvasir_router.routing.load import ReplicaLoad
from kvasir_router.routing.rates import UNKNOWN, ReplicaRates

STEP = DecodeStep(seconds=0.004, num_streams=2)


def replica(
    role: Role, rates: ReplicaRates = UNKNOWN, *, prefill_line: tuple[int, ...] = (), num_streams: int = 0
) -> ReplicaLoad:
    return ReplicaLoad(
        replica_id=ReplicaId(f"{role}-0"),
        role=role,
        num_inflight=num_streams,
        prefill_line=prefill_line,
        rates=rates,
    )


def test_own_prompt_waits_for_those_in_line_and_running_streams_wait_for_it() -> None:
    delay = delay_at_decode(100, replica("decode", prefill_line=(50,), num_streams=3), 1000.0)
    assert delay.first_token_s == pytest.approx(0.15)
    assert delay.others_s == pytest.approx(0.3)


def test_tokens_held_up_are_the_steps_with_prompts_that_fall_between_two_tokens() -> None:
    busy = replica("prefill", ReplicaRates(prefill_steps_per_s=9.0))
    decodes = replica("decode", ReplicaRates(prefill_steps_per_s=1.0, decode_step=STEP))
    assert share_held_up([busy, decodes]) == pytest.approx(0.02)


def test_share_held_up_is_that_of_streams_that_all_replicas_share() -> None:
    alone = DecodeStep(seconds=0.004, num_streams=6, s_per_stream=0.0005)
    assert alone.seconds_at(alone.tokens_per_s) == pytest.approx(0.004)
    decodes = replica("decode", ReplicaRates(prefill_steps_per_s=0.0, decode_step=alone))
    busy = replica("prefill", ReplicaRates(prefill_steps_per_s=10.0))
    step_s = alone.seconds_at(alone.tokens_per_s / 2)
    assert step_s == pytest.approx(0.001 + 0.0005 * (alone.tokens_per_s / 2 * step_s))
    assert share_held_up([busy, decodes]) == pytest.approx(5 * step_s)


def test_replicas_that_decode_for_as_many_are_taken_as_they_are() -> None:
    step = DecodeStep(seconds=0.004, num_streams=6, s_per_stream=0.0005)
    mixed = replica("mixed", ReplicaRates(prefill_steps_per_s=5.0, decode_step=step))
    assert share_held_up([mixed, mixed]) == pytest.approx(0.02)


@pytest.mark.parametrize("rates", [UNKNOWN, ReplicaRates(prefill_steps_per_s=1.0), ReplicaRates(decode_step=STEP)])
def test_share_held_up_is_unknown_until_both_kinds_of_steps_were_measured(rates: ReplicaRates) -> None:
    assert share_held_up([replica("prefill", rates), replica("decode", rates)]) is None


def test_what_others_wait_counts_by_what_is_held_up_already() -> None:
    rates = ReplicaRates(prefill_steps_per_s=9.0, long_steps_per_s=1.25, decode_step=STEP)
    delay = delay_at_decode(100, replica("decode", rates, num_streams=3), 1000.0)
    assert delay.weight == pytest.approx(0.5, rel=0.05)
    assert delay.total_s == pytest.approx(0.1 + delay.weight * 0.3)


def test_prompts_own_steps_and_those_in_line_count_as_held_up() -> None:
    rates = ReplicaRates(long_steps_per_s=0.0, decode_step=STEP)
    decode = replica("decode", rates, prefill_line=(200,), num_streams=3)
    assert delay_at_decode(100, decode, 1000.0, step_s=0.1).weight == pytest.approx(3 / MEMORY_S * 0.004 / MOST_HELD_UP)


def test_short_prompt_that_is_noticed_holds_up_as_many_tokens_as_any_step() -> None:
    rates = ReplicaRates(decode_step=STEP, usual_gap_s=0.013)
    for decode in (replica("decode", num_streams=3), replica("decode", rates, num_streams=3)):
        assert delay_at_decode(10, decode, 1000.0, step_s=0.2).others_s == pytest.approx(0.6)


def test_prompt_whose_step_is_as_long_as_some_without_is_noticed_by_the_median_alone() -> None:
    rates = ReplicaRates(prefill_steps_per_s=25.0, long_steps_per_s=5.0, decode_step=STEP, usual_gap_s=0.015)
    delay = delay_at_decode(10, replica("decode", rates, num_streams=3), 1000.0, step_s=0.2)
    assert delay.others_s == pytest.approx(0.03)
    assert delay.weight == pytest.approx(0.1 / MOST_BRIEFLY_HELD_UP, rel=0.05)


def test_long_prompt_is_noticed_by_what_a_step_takes_of_it() -> None:
    rates = ReplicaRates(long_steps_per_s=5.0, decode_step=STEP, usual_gap_s=0.3)
    decode = replica("decode", rates, num_streams=3)
    assert delay_at_decode(1000, decode, 1000.0, step_s=0.2).others_s == pytest.approx(3.0)
    assert delay_at_decode(1000, decode, 1000.0, step_s=0.4).weight == pytest.approx(0.02 / 0.01, rel=0.05)


def test_short_prompt_waits_at_prefill_for_shorter_ones_and_for_the_end_of_a_step() -> None:
    rates = ReplicaRates(prefill_step_s=0.05)
    busy = replica("prefill", rates, prefill_line=(10, 1000, 400))
    assert delay_at_prefill(20, busy, 1000.0).first_token_s == pytest.approx(0.01 + 0.05 + 0.02)
    idle = replica("prefill", rates, prefill_line=(10,))
    assert delay_at_prefill(20, idle, 1000.0).first_token_s == pytest.approx(0.01 + 0.02)


def test_prompt_of_more_than_a_step_waits_at_prefill_for_all_in_line() -> None:
    busy = replica("prefill", ReplicaRates(prefill_step_s=0.05), prefill_line=(10, 1000))
    assert delay_at_prefill(100, busy, 1000.0).first_token_s == pytest.approx(1.11)


def test_hand_over_costs_what_was_measured() -> None:
    assert delay_at_prefill(100, replica("prefill", ReplicaRates(handover_s=0.03)), 1000.0).handover_s == 0.03


def test_hand_over_that_was_not_measured_costs_what_one_host_would_take() -> None:
    assert delay_at_prefill(100, replica("prefill"), 1000.0).handover_s == DEFAULT_HANDOVER_S


@pytest.mark.parametrize(("push_s_per_token", "expected_s"), [(0.0005, 0.002), (0.003, 0.2)])
def test_link_slower_than_the_prefill_leaves_the_rest_uncovered(push_s_per_token: float, expected_s: float) -> None:
    rates = ReplicaRates(push_s_per_token=push_s_per_token, handover_s=0.002)
    assert delay_at_prefill(100, replica("prefill", rates), 1000.0).handover_s == pytest.approx(expected_s)


def test_without_any_rate_a_prefill_replica_is_asked_so_that_there_will_be_one() -> None:
    verdict = weigh(10, replica("prefill"), replica("decode"))
    assert (verdict.decode_prefills, verdict.reason) == (False, "no prefill rate is known yet")


@pytest.mark.parametrize("knows", ["prefill", "decode"])
def test_rate_of_one_stands_for_that_of_the_other(knows: str) -> None:
    known = ReplicaRates(prefill_tokens_per_s=1000.0)
    prefill = replica("prefill", known if knows == "prefill" else UNKNOWN)
    decode = replica("decode", known if knows == "decode" else UNKNOWN)
    assert weigh(10, prefill, decode).decode_prefills


def test_decode_that_is_slower_at_it_leaves_it_to_prefill() -> None:
    slow, fast = ReplicaRates(prefill_tokens_per_s=100.0), ReplicaRates(prefill_tokens_per_s=1000.0)
    assert not weigh(10, replica("prefill", fast), replica("decode", slow)).decode_prefills


def test_break_even_grows_as_the_hand_over_gets_dearer() -> None:
    def most_tokens_at_decode(handover_s: float) -> int:
        rates = ReplicaRates(prefill_tokens_per_s=1000.0, handover_s=handover_s)
        prefill, decode = replica("prefill", rates), replica("decode", rates, num_streams=2)
        return max((n for n in range(1, 500) if weigh(n, prefill, decode).decode_prefills), default=0)

    assert [most_tokens_at_decode(seconds) for seconds in (0.0, 0.0101, 0.1001)] == [0, 5, 50]
