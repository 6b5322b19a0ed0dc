"""The engine with a fake model, case by case: every stream is the one that its history asks for."""

import pytest

from kvasir_protocol.errors import ContextTooLong, InvalidRequest, ServiceUnavailable
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest
from tests.unit.workers.engine_house import House, greedy
from tests.unit.workers.fakes import (
    EOS,
    VOCAB_SIZE,
    expected_answer,
    make_request,
)

# At the door


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (make_request("r", []), "the prompt is empty"),
        (make_request("r", [VOCAB_SIZE]), "outside the vocabulary of 16"),
        (make_request("r", [-1]), "outside the vocabulary"),
        (make_request("r", [1], cache_priority=101), "cache_priority must be between 0 and 100, got 101"),
        (make_request("r", [1], emitted=[VOCAB_SIZE]), "outside the vocabulary"),
        (make_request("r", [1], sampling=greedy(stop_token_ids=(VOCAB_SIZE,))), "a stop token id is outside"),
        (make_request("r", [1], emitted=[1, 2], max_tokens=2), "emitted already"),
        (make_request("r", [1], sampling=greedy(max_tokens=None)), "max_tokens and seed are to be set"),
        (make_request("r", [1], sampling=greedy(seed=None)), "max_tokens and seed are to be set"),
    ],
)
def test_bad_request_is_refused_with_the_reason(request_: GenerationRequest, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        House().engine.add(request_)


def test_negative_choice_is_refused() -> None:
    request = GenerationRequest(request_id=RequestId("r"), prompt_token_ids=(1,), sampling=greedy(), choice_index=-1)
    with pytest.raises(InvalidRequest, match="choices are counted from 0"):
        House().engine.add(request)


def test_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ContextTooLong, match="prompt of 5 tokens and max_tokens of 4 make 9; this model serves up to 8"
    ):
        House(num_pages=2).engine.add(make_request("r", [1] * 5, max_tokens=4))


@pytest.mark.parametrize(("num_tokens", "field"), [(7, "max_tokens"), (8, "prompt")])
def test_too_long_request_names_what_to_change(num_tokens: int, field: str) -> None:
    with pytest.raises(ContextTooLong) as caught:
        House(num_pages=2).engine.add(make_request("r", [1] * num_tokens, max_tokens=4))
    assert caught.value.field == field


def test_request_that_just_fits_is_answered() -> None:
    request = make_request("r", [1] * 5, sampling=greedy(max_tokens=3))
    assert House(num_pages=2).answer(request) == expected_answer(request)[0]


def test_request_id_in_use_is_refused() -> None:
    house = House()
    house.engine.add(make_request("r", [1]))
    with pytest.raises(InvalidRequest, match="'r' is in use"):
        house.engine.add(make_request("r", [2]))


# Streams


@pytest.mark.parametrize("budget", [1, 2, 7, 100])
def test_chunks_of_any_size_give_the_same_tokens(budget: int) -> None:
    request = make_request("r", [i % 7 for i in range(30)], sampling=greedy())
    assert House(budget=budget, max_num_seqs=1).answer(request) == expected_answer(request)[0]


def find_request(reason: str, **changes: object) -> GenerationRequest:
    """A prompt whose answer ends for a reason after at least two tokens."""
    for first in range(VOCAB_SIZE):
        for second in range(VOCAB_SIZE):
            request = make_request("r", [first, second], sampling=greedy(**{"ignore_eos": False, **changes}))
            answer, ended = expected_answer(request)
            if ended == reason and 2 <= len(answer) < 6:
                return request
    raise AssertionError("the fake model never does this")


def test_end_token_ends_the_stream_and_is_named() -> None:
    house, request = House(), find_request("stop")
    house.answer(request)
    last = house.outputs["r"][-1]
    assert (last.token_ids, last.finish_reason, last.stop_token) == ((EOS,), "stop", EOS)


def test_stop_token_id_ends_the_stream_and_is_named() -> None:
    house, request = House(), find_request("stop", ignore_eos=True, stop_token_ids=(3, 5, 7))
    house.answer(request)
    last = house.outputs["r"][-1]
    assert (last.finish_reason, last.stop_token) == ("stop", last.token_ids[0])
    assert last.token_ids[0] in (3, 5, 7)


def test_length_ends_the_stream_without_a_stop_token() -> None:
    house = House()
    house.answer(make_request("r", [1, 2], sampling=greedy()))
    assert (house.outputs["r"][-1].finish_reason, house.outputs["r"][-1].stop_token) == ("length", None)


def test_ignored_end_token_does_not_end_the_stream() -> None:
    stopping = find_request("stop")
    request = make_request("r", stopping.prompt_token_ids, sampling=greedy(ignore_eos=True))
    answer = House().answer(request)
    assert EOS in answer
    assert len(answer) == 6


def test_no_end_before_min_tokens() -> None:
    stopping = find_request("stop")
    request = make_request("r", stopping.prompt_token_ids, sampling=greedy(ignore_eos=False, min_tokens=6))
    assert EOS not in House().answer(request)


def test_stop_that_comes_too_early_for_want_of_other_tokens_does_not_end_the_stream() -> None:
    request = make_request("r", [1], sampling=greedy(min_tokens=3, stop_token_ids=tuple(range(VOCAB_SIZE))))
    assert len(House().answer(request)) == 3


def test_outputs_are_numbered_without_gaps() -> None:
    house = House()
    house.answer(make_request("r", [1, 2], sampling=greedy()))
    assert [output.first_index for output in house.outputs["r"]] == list(range(6))


@pytest.mark.parametrize("num_emitted", range(1, 6))
def test_replay_goes_on_with_the_same_stream(num_emitted: int) -> None:
    request = make_request("r", [1, 2, 3], sampling=greedy())
    answer, _ = expected_answer(request)
    house = House()
    replayed = make_request("again", [1, 2, 3], sampling=greedy(), emitted=answer[:num_emitted])
    assert house.answer(replayed) == answer[num_emitted:]
    assert house.outputs["again"][0].first_index == num_emitted


def test_repeated_prompt_is_answered_from_the_cache() -> None:
    house = House()
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    first = house.answer(make_request("a", prompt, sampling=greedy()))
    assert house.answer(make_request("b", prompt, sampling=greedy())) == first
    assert house.outputs["b"][0].num_cached_tokens == 8


def test_generated_tokens_are_cached_too() -> None:
    house = House()
    answer = house.answer(make_request("a", [1, 2, 3], sampling=greedy()))
    house.answer(make_request("b", [1, 2, 3, *answer], sampling=greedy()))
    assert house.outputs["b"][0].num_cached_tokens == 8


def test_other_salt_is_not_answered_from_the_cache() -> None:
    house = House()
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    house.answer(make_request("a", prompt, sampling=greedy(), salt="one"))
    house.answer(make_request("b", prompt, sampling=greedy(), salt="two"))
    assert house.outputs["b"][0].num_cached_tokens == 0


def test_aborted_request_says_nothing_more_and_holds_nothing() -> None:
    house = House()
    house.engine.add(make_request("r", [1, 2, 3], sampling=greedy()))
    house.step()
    assert house.engine.abort(RequestId("r"))
    house.drain()
    assert (len(house.tokens("r")), house.engine.num_used_pages) == (1, 0)


def test_unknown_request_is_not_aborted() -> None:
    assert not House().engine.abort(RequestId("r"))


def test_aborted_chunk_is_not_found_by_others() -> None:
    """A page that was being filled when its request was aborted must never be anybody's prefix."""
    house = House(budget=6, max_num_seqs=1)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    house.engine.add(make_request("a", prompt, sampling=greedy()))
    house.step()
    house.engine.abort(RequestId("a"))
    house.answer(make_request("b", prompt, sampling=greedy()))
    assert house.outputs["b"][0].num_cached_tokens == 4


def test_step_without_work_does_nothing() -> None:
    house = House()
    assert (house.step(), house.engine.num_moves) == ([], 0)


def test_pressure_preempts_and_changes_no_token() -> None:
    house = House(num_pages=6)
    requests = [make_request(f"r{i}", [i, 1, 2, 3, 4, 5], sampling=greedy(max_tokens=12)) for i in range(4)]
    for request in requests:
        house.engine.add(request)
    house.drain()
    assert house.engine.counters().num_preemptions > 0
    assert [house.tokens(r.request_id) for r in requests] == [expected_answer(r)[0] for r in requests]


def test_counters_add_up() -> None:
    house = House()
    prompt = [1, 2, 3, 4, 5, 6]
    house.answer(make_request("a", prompt, sampling=greedy()))
    house.answer(make_request("b", prompt, sampling=greedy()))
    house.engine.add(make_request("c", prompt, sampling=greedy()))
    house.engine.abort(RequestId("c"))
    counters = house.engine.counters()
    assert (counters.prompt_tokens, counters.cached_prompt_tokens, counters.computed_prompt_tokens) == (12, 5, 7)
    assert (counters.generated_tokens, counters.finished_length, counters.finished_abort) == (12, 2, 1)


# Pages that leave


def test_handed_over_request_ends_after_its_first_token() -> None:
    house = House()
    request = make_request("r", range(10), sampling=greedy())
    house.engine.add(request, is_prefill_only=True)
    house.drain()
    token = expected_answer(request)[0][0]
    assert (house.tokens("r"), house.outputs["r"][-1].finish_reason) == ([token], "handed_over")
    assert house.exporter.finished == {"r": (token,)}


def test_every_page_is_exported_once_with_its_content() -> None:
    house = House(budget=5, max_num_seqs=1)
    house.engine.add(make_request("r", range(10), sampling=greedy()), is_prefill_only=True)
    house.drain()
    exported = house.exporter.exported
    assert [item.first_page + i for item in exported for i in range(len(item.pages))] == [0, 1, 2]
    assert house.runner.read([page for item in exported for page in item.pages], 10) == list(range(10))


def test_exported_pages_are_pinned_until_they_are_given_back() -> None:
    house = House()
    house.engine.add(make_request("r", range(10), sampling=greedy()), is_prefill_only=True)
    house.drain()
    held = house.engine.num_used_pages
    for item in house.exporter.exported:
        house.engine.release_exported(item.pages)
    house.engine.audit()
    assert (held, house.engine.num_used_pages) == (3, 0)


def test_pages_are_exported_as_chunks_complete() -> None:
    house = House(budget=5, max_num_seqs=1)
    house.engine.add(make_request("r", range(10), sampling=greedy()), is_prefill_only=True)
    house.step()
    assert [(item.first_page, len(item.pages)) for item in house.exporter.exported] == [(0, 1)]


def test_answer_that_ends_at_once_is_cancelled_and_not_handed_over() -> None:
    house = House()
    house.engine.add(make_request("r", range(10), sampling=greedy(max_tokens=1)), is_prefill_only=True)
    house.drain()
    assert (house.exporter.cancelled, house.exporter.finished) == (["r"], {})
    assert house.outputs["r"][-1].finish_reason == "length"


def test_aborted_hand_over_is_cancelled() -> None:
    house = House(budget=5, max_num_seqs=1)
    house.engine.add(make_request("r", range(10), sampling=greedy()), is_prefill_only=True)
    house.step()
    house.engine.abort(RequestId("r"))
    house.engine.audit()
    assert house.exporter.cancelled == ["r"]


# Pages that come


def test_reserved_sequence_goes_on_after_the_other_replicas_token() -> None:
    house = House()
    request = make_request("r", range(10), sampling=greedy())
    answer, _ = expected_answer(request)
    sequence = house.reserve(request)
    house.fill(sequence)
    house.engine.start_reserved(sequence, (answer[0],))
    house.drain()
    assert house.tokens("r") == answer[1:]


def test_reserved_sequence_does_not_run_before_it_is_started() -> None:
    house = House()
    house.reserve(make_request("r", range(10), sampling=greedy()))
    assert (house.engine.has_work, house.step()) == (False, [])


def test_reservation_starts_from_the_cached_prefix() -> None:
    house = House()
    house.answer(make_request("a", range(10), sampling=greedy()))
    sequence = house.reserve(make_request("b", range(10), sampling=greedy()))
    assert (sequence.num_computed, sequence.num_published_pages, len(sequence.pages)) == (8, 2, 3)


def test_released_reservation_leaves_nothing() -> None:
    house = House()
    house.engine.release_reserved(house.reserve(make_request("r", range(10), sampling=greedy())))
    house.engine.audit()
    assert (house.engine.num_used_pages, list(house.kv.tree.pages())) == (0, [])


def test_reservation_without_pages_is_refused_and_takes_none() -> None:
    house = House(num_pages=4)
    house.reserve(make_request("a", range(10), sampling=greedy()))
    with pytest.raises(ServiceUnavailable, match="1 pages are free, the request needs 2"):
        house.reserve(make_request("b", [1] * 5, sampling=greedy()))
    house.engine.audit()


def test_reservations_and_running_sequences_share_the_places() -> None:
    house = House(max_num_seqs=2)
    house.engine.add(make_request("a", [1], sampling=greedy()))
    house.step()
    house.reserve(make_request("b", [2], sampling=greedy()))
    with pytest.raises(ServiceUnavailable, match="all 2 places"):
        house.reserve(make_request("c", [3], sampling=greedy()))


def test_reserved_place_is_still_there_when_the_pages_come() -> None:
    house = House(max_num_seqs=2)
    sequence = house.reserve(make_request("r", [1, 2], sampling=greedy()))
    for i in range(3):
        house.engine.add(make_request(f"a{i}", [i], sampling=greedy()))
    house.step()
    house.fill(sequence)
    house.engine.start_reserved(sequence, (expected_answer(sequence.request)[0][0],))
    assert house.engine.num_running == 2


def test_reservation_does_not_overtake_those_in_line_for_a_place() -> None:
    house = House(max_num_seqs=1)
    house.engine.add(make_request("a", [1], sampling=greedy()))
    with pytest.raises(ServiceUnavailable):
        house.reserve(make_request("b", [2], sampling=greedy()))


def test_reservation_does_not_overtake_the_first_in_line_for_pages() -> None:
    house = House(num_pages=8)
    held = house.reserve(make_request("held", [1] * 9, sampling=greedy()))
    house.engine.add(make_request("big", [2] * 22, sampling=greedy()))
    house.step()
    with pytest.raises(ServiceUnavailable, match="0 pages are free"):
        house.reserve(make_request("small", [3], sampling=greedy()))
    house.engine.release_reserved(held)
    house.drain()
    assert len(house.tokens("big")) == 6


def test_waiting_request_runs_when_a_reservation_is_released() -> None:
    house = House(num_pages=4)
    held = house.reserve(make_request("held", range(10), sampling=greedy()))
    house.engine.add(make_request("r", [1] * 9, sampling=greedy()))
    assert house.step() == []
    house.engine.release_reserved(held)
    house.drain()
    assert len(house.tokens("r")) == 6
