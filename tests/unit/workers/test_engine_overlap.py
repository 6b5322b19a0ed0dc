"""Steps that are planned while others run: nothing is said twice, lost, or written into anybody else's pages."""

import pytest

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.ids import RequestId
from tests.unit.workers.engine_house import House, greedy
from tests.unit.workers.fakes import expected_answer, make_request


def overlapped(**settings: object) -> House:
    """Its runner computes as late as it may."""
    return House(overlap=True, is_prompt=False, **settings)  # type: ignore[arg-type]


def test_what_a_step_says_comes_with_the_next() -> None:
    house = overlapped()
    house.engine.add(make_request("r", [1, 2, 3], sampling=greedy(max_tokens=2)))
    assert house.step() == []
    assert [output.first_index for output in house.step()] == [0]
    assert [output.first_index for output in house.step()] == [1]
    assert not house.engine.has_work


def test_step_is_launched_before_the_one_before_it_has_landed() -> None:
    house = overlapped()
    house.engine.add(make_request("r", [1, 2, 3], sampling=greedy(max_tokens=9)))
    house.step()
    house.step()
    assert (len(house.runner.plans), house.engine.counters().num_steps) == (2, 1)


def test_no_step_is_spent_on_a_sequence_that_surely_ends() -> None:
    house = overlapped()
    house.answer(make_request("r", [1, 2, 3], sampling=greedy(max_tokens=4)))
    assert len(house.runner.plans) == 4


def test_answer_that_ends_unforeseen_says_nothing_of_the_step_that_was_on_its_way() -> None:
    house = overlapped()
    request = make_request("r", [1, 1], max_tokens=50)
    expected, reason = expected_answer(request)
    assert reason == "stop"
    assert house.answer(request) == expected
    assert len(house.runner.plans) == len(expected) + 1


def test_aborted_sequence_keeps_its_pages_until_its_step_has_landed() -> None:
    house = overlapped()
    house.engine.add(make_request("r", range(1, 10), sampling=greedy()))
    house.step()
    house.engine.abort(RequestId("r"))
    house.engine.audit()
    assert (house.engine.num_running, house.engine.num_used_pages) == (0, 3)
    assert house.step() == []
    assert house.engine.num_used_pages == 0


def test_name_is_in_use_until_its_last_step_has_landed() -> None:
    house = overlapped()
    request = make_request("r", [1, 2, 3], sampling=greedy())
    house.engine.add(request)
    house.step()
    house.engine.abort(RequestId("r"))
    with pytest.raises(InvalidRequest, match="in use"):
        house.engine.add(request)
    house.step()
    house.engine.add(request)


def test_complete_answer_is_cached_when_its_last_step_has_landed() -> None:
    house = overlapped()
    first = make_request("r", [1, 1], max_tokens=50)
    answer = house.answer(first)
    house.engine.add(make_request("next", [1, 1, *answer, 2, 3]))
    house.drain()
    assert house.outputs["next"][0].num_cached_tokens == 2 + len(answer) - 1


def test_closed_engine_has_nothing_on_its_way() -> None:
    house = overlapped()
    house.engine.add(make_request("r", [1, 2, 3], sampling=greedy()))
    house.step()
    house.engine.close()
    assert (house.engine.counters().num_steps, house.runner.num_landed) == (0, 1)


@pytest.mark.parametrize("overlap", [False, True])
def test_engine_in_which_a_step_failed_takes_no_other(overlap: bool) -> None:
    house = House(overlap=overlap)
    house.engine.add(make_request("r", [1, 2, 3], sampling=greedy()))
    house.step()
    house.runner.fails = True
    with pytest.raises(MemoryError):
        house.engine.step()
    with pytest.raises(AssertionError, match="make a new engine"):
        house.engine.step()


def test_preemption_waits_for_the_step_on_its_way() -> None:
    house = overlapped(num_pages=5, max_num_seqs=2, caches=False)
    requests = [make_request(f"r{i}", [i, 1, 1], sampling=greedy(max_tokens=12)) for i in range(2)]
    for request in requests:
        house.engine.add(request)
    house.drain()
    assert house.engine.counters().num_preemptions > 0
    for request in requests:
        assert house.tokens(request.request_id) == expected_answer(request)[0]


def test_page_that_a_step_still_reads_is_kept_though_the_cache_has_another_of_its_content() -> None:
    """Two equal prompts, too short for one to wait for the other: the later gives its own page back."""
    house = overlapped(page_size=4)
    for name in ("a", "b"):
        house.engine.add(make_request(name, [1, 2, 3, 1, 2], sampling=greedy(max_tokens=5)))
    house.step()
    house.step()
    (replaced,) = [
        entry.sequence.replaced_pages for entry in house.runner.plans[1].entries if entry.sequence.replaced_pages
    ]
    assert house.kv.pool.references(replaced[0]) == 1
    house.step()
    assert house.kv.pool.references(replaced[0]) == 0
    house.drain()
    assert house.tokens("a") == house.tokens("b")
