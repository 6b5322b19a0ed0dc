"""Which prompts for other replicas need not wait for longer ones."""

from kvasir_workers.overtaking import overtakers
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fakes import make_request

STEP_TOKENS = 16


def sequence(name: str, num_tokens: int, *, num_computed: int = 0, is_leaving: bool = True) -> Sequence:
    made = Sequence(make_request(name, range(num_tokens)), is_leaving)
    made.num_computed = num_computed
    return made


def names(running: list[Sequence], waiting: list[Sequence]) -> list[str]:
    return [found.request_id for found in overtakers(running, waiting, STEP_TOKENS)]


def test_shortest_go_first_as_far_as_a_step_takes_them() -> None:
    waiting = [sequence("b", 6), sequence("c", 40), sequence("a", 5), sequence("d", 7)]
    assert names([sequence("long", 40)], waiting) == ["a", "b"]


def test_streams_that_run_beside_it_take_a_token_each() -> None:
    begun, own = sequence("long", 40), [sequence(f"own {i}", 9, num_computed=8, is_leaving=False) for i in range(3)]
    waiting = [sequence("a", 12)]
    assert names([begun, *own], waiting) == ["a"]
    assert names([begun, *own, sequence("one more", 9, num_computed=8, is_leaving=False)], waiting) == []


def test_what_is_left_of_a_prompt_counts() -> None:
    waiting = [sequence("a", 10)]
    assert names([sequence("long", 40, num_computed=29)], waiting) == ["a"]
    assert names([sequence("long", 40, num_computed=30)], waiting) == []


def test_nobody_overtakes_what_leaves_half_a_step_to_others() -> None:
    assert names([sequence("short", STEP_TOKENS // 2)], [sequence("a", 2)]) == []


def test_streams_that_run_here_are_neither_overtaken_nor_do_they_overtake() -> None:
    assert names([sequence("own", 40, is_leaving=False)], [sequence("a", 2)]) == []
    assert names([sequence("long", 40)], [sequence("own", 2, is_leaving=False)]) == []
