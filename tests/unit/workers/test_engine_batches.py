"""Several batches on their way at once: no sequence is in two that need each other, and all say the same as ever."""

from tests.unit.workers.engine_house import House, greedy
from tests.unit.workers.fakes import expected_answer, make_request


def pipelined(num_batches: int = 2, **settings: object) -> House:
    """Its runner computes as late as it may."""
    return House(num_batches=num_batches, is_prompt=False, **settings)  # type: ignore[arg-type]


def members(house: House, step: int) -> set[str]:
    return {entry.sequence.request_id for entry in house.runner.plans[step].entries}


def test_as_many_batches_as_stages_are_on_their_way() -> None:
    house = pipelined(3)
    for index in range(6):
        house.engine.add(make_request(f"r{index}", [index, 2, 3], sampling=greedy()))
    most = 0
    while house.engine.has_work:
        house.step()
        most = max(most, len(house.runner.plans) - house.runner.num_landed)
    assert most == 2  # and a third while the oldest is waited for


def test_running_sequences_are_shared_out_among_the_batches() -> None:
    house = pipelined()
    for index in range(4):
        house.engine.add(make_request(f"r{index}", [index, 2], sampling=greedy()))
    for _ in range(6):
        house.step()
    one, other = members(house, -1), members(house, -2)
    assert (len(one), len(other)) == (2, 2)
    assert not one & other


def test_sequence_is_not_planned_while_its_token_is_coming() -> None:
    house = pipelined()
    house.engine.add(make_request("r", [1, 2, 3], sampling=greedy(max_tokens=3)))
    house.drain()
    assert [len(plan.entries) for plan in house.runner.plans] == [1, 1, 1]
    assert house.tokens("r") == expected_answer(make_request("r", [1, 2, 3], sampling=greedy(max_tokens=3)))[0]


def test_chunks_of_one_prompt_follow_each_other_through_the_stages() -> None:
    house = pipelined(budget=8)
    house.engine.add(make_request("r", range(1, 16), sampling=greedy(max_tokens=2)))
    house.step()
    house.step()
    assert [plan.entries[0].start for plan in house.runner.plans] == [0, 8]
    assert house.runner.num_landed == 1


def test_answers_are_those_of_one_batch_at_a_time() -> None:
    requests = [make_request(f"r{i}", [i % 3, *range(1, 3 + i)], sampling=greedy(max_tokens=5)) for i in range(7)]
    house = pipelined(3, num_pages=12, budget=9)
    for request in requests:
        house.engine.add(request)
    house.drain()
    assert [house.tokens(request.request_id) for request in requests] == [expected_answer(r)[0] for r in requests]


def test_closed_engine_has_landed_every_step() -> None:
    house = pipelined(3)
    for index in range(3):
        house.engine.add(make_request(f"r{index}", [index], sampling=greedy()))
    for _ in range(4):
        house.step()
    house.engine.close()
    assert house.runner.num_landed == len(house.runner.plans)
