"""What an engine takes over from other requests: parts of pages, pages that are being computed, dear pages."""

import pytest

from kvasir_protocol.ids import RequestId
from kvasir_workers.kv.manager import Reuse
from tests.unit.workers.engine_house import House, greedy
from tests.unit.workers.fakes import expected_answer, make_request


def generous(**changes: int) -> House:
    """Takes over whatever it can."""
    return House(reuse=Reuse(min_copied_tokens=1, min_awaited_pages=1), **changes)


def test_prompt_that_leaves_another_in_a_page_computes_only_the_rest() -> None:
    house = generous()
    house.answer(make_request("a", [1, 2, 3, 4, 5, 6, 7, 8, 9], sampling=greedy()))
    request = make_request("b", [1, 2, 3, 4, 5, 6, 9, 9, 9], sampling=greedy())
    assert house.answer(request) == expected_answer(request)[0]
    assert house.outputs["b"][0].num_cached_tokens == 6
    assert [len(plan.copies) for plan in house.runner.plans if plan.copies] == [1]


def test_next_turn_computes_only_what_is_new() -> None:
    """All turns before are cached but for the last token of the last answer, which nobody has computed."""
    house, history = generous(), [1, 2, 3]
    for turn in range(6):
        request = make_request(f"t{turn}", history, sampling=greedy(max_tokens=3))
        answer = house.answer(request)
        assert answer == expected_answer(request)[0]
        if turn:
            assert house.outputs[f"t{turn}"][0].num_cached_tokens == len(history) - 3
        history = [*history, *answer, 5, 6]


def test_source_and_copy_need_not_fit_both() -> None:
    """Where there is no room for a page and its copy, the page is computed anew."""
    house = House(num_pages=2, reuse=Reuse(min_copied_tokens=1))
    house.answer(make_request("a", [1, 2, 3, 4, 5], sampling=greedy(max_tokens=2)))
    request = make_request("b", [1, 2, 9, 9, 9, 9], sampling=greedy(max_tokens=2))
    assert house.answer(request) == expected_answer(request)[0]
    assert house.outputs["b"][0].num_cached_tokens == 0


def test_of_equal_newcomers_one_computes() -> None:
    house = generous(budget=64)
    requests = [make_request(f"r{i}", [*range(12), i], sampling=greedy()) for i in range(4)]
    for request in requests:
        house.engine.add(request)
    house.step()
    assert (house.engine.num_running, house.engine.num_waiting) == (1, 3)
    house.drain()
    assert [house.outputs[f"r{i}"][0].num_cached_tokens for i in range(4)] == [0, 12, 12, 12]
    assert [house.tokens(r.request_id) for r in requests] == [expected_answer(r)[0] for r in requests]


def test_those_who_wait_for_pages_hold_nobody_up() -> None:
    house = generous(budget=64)
    for name, prompt in (("a", range(12)), ("b", range(12)), ("c", [5, 4, 3])):
        house.engine.add(make_request(name, prompt, sampling=greedy()))
    house.step()
    assert (sorted(house.outputs), house.engine.num_waiting) == (["a", "c"], 1)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_next_takes_over_when_the_first_is_aborted(num_steps: int) -> None:
    house = generous(budget=8)
    requests = [make_request(f"r{i}", range(16), sampling=greedy()) for i in range(3)]
    for request in requests:
        house.engine.add(request)
    for _ in range(num_steps):
        house.step()
    house.engine.abort(RequestId("r0"))
    house.step()
    assert house.engine.num_running >= 1
    house.drain()
    assert [house.tokens(r.request_id) for r in requests[1:]] == [expected_answer(r)[0] for r in requests[1:]]


def test_next_takes_over_when_the_first_is_preempted() -> None:
    """A running answer needs the page that a newcomer's prompt is filling, for which a third one waits."""
    house = generous(num_pages=9, budget=4, max_num_seqs=4)
    requests = [
        make_request("old", [7, 7, 7], sampling=greedy(max_tokens=25)),
        make_request("r0", range(12), sampling=greedy(max_tokens=12)),
        make_request("r1", range(12), sampling=greedy(max_tokens=12)),
    ]
    for request in requests:
        house.engine.add(request)
    house.drain()
    assert house.engine.counters().num_preemptions > 0
    assert [house.tokens(r.request_id) for r in requests] == [expected_answer(r)[0] for r in requests]


def test_short_common_prefix_is_not_waited_for() -> None:
    house = House(budget=64)
    for i in range(3):
        house.engine.add(make_request(f"r{i}", [*range(12), i], sampling=greedy()))
    house.step()
    assert house.engine.num_running == 3


def test_choices_of_one_prompt_compute_its_pages_once() -> None:
    house = House(budget=64)
    for i in range(4):
        house.engine.add(make_request(f"r{i}", range(10), sampling=greedy(), choice_index=i))
    house.drain()
    assert [house.outputs[f"r{i}"][0].num_cached_tokens for i in range(4)] == [0, 8, 8, 8]


def test_page_that_an_aborted_request_was_filling_is_not_copied() -> None:
    house = generous(budget=6, max_num_seqs=1)
    house.engine.add(make_request("a", range(9), sampling=greedy()))
    house.step()
    house.engine.abort(RequestId("a"))
    house.answer(make_request("b", range(9), sampling=greedy()))
    assert house.outputs["b"][0].num_cached_tokens == 4


def test_dear_prefix_outlives_cheap_ones() -> None:
    house = House(num_pages=8, reuse=Reuse(min_copied_tokens=1))
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    house.answer(make_request("dear", prompt, max_tokens=1, cache_priority=9))
    for i in range(6):
        house.answer(make_request(f"cheap{i}", [i + 3] * 14, max_tokens=1))
    house.answer(make_request("again", prompt, max_tokens=1))
    assert house.outputs["again"][0].num_cached_tokens == 8
