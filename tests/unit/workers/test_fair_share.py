"""Counters of service: who had how much, and what a newcomer starts from."""

from kvasir_workers.fair_share import INPUT_WEIGHT, OUTPUT_WEIGHT, TokenCounters


def test_tokens_are_charged_by_their_weights() -> None:
    counters = TokenCounters({})
    counters.charge("a", num_input=10, num_output=3)
    assert (counters["a"], counters["b"]) == (10 * INPUT_WEIGHT + 3 * OUTPUT_WEIGHT, 0)


def test_tenant_of_weight_two_is_charged_half() -> None:
    counters = TokenCounters({"a": 2.0})
    counters.charge("a", num_input=10)
    counters.charge("b", num_input=10)
    assert counters["b"] == 2 * counters["a"]


def test_newcomer_is_lifted_to_the_least_served_in_line() -> None:
    counters = TokenCounters({})
    counters.charge("a", num_input=10)
    counters.charge("b", num_input=7)
    counters.enter("new", ["a", "b"])
    assert counters["new"] == 7


def test_newcomer_keeps_what_it_owes() -> None:
    counters = TokenCounters({})
    counters.charge("a", num_input=10)
    counters.enter("a", ["b"])
    assert counters["a"] == 10


def test_newcomer_to_an_empty_line_is_lifted_to_the_last_that_left() -> None:
    counters = TokenCounters({})
    counters.charge("a", num_input=10)
    counters.leave("a")
    counters.charge("a", num_output=1)
    counters.enter("b", [])
    assert counters["b"] == counters["a"] == 12


def test_first_of_all_starts_from_nothing() -> None:
    counters = TokenCounters({})
    counters.enter("a", [])
    assert counters["a"] == 0
