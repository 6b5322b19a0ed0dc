"""A request's tokens are its own: whatever else runs, however it is cut, preempted or cached."""

import dataclasses
import random

import pytest

from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from tests.integration.engine.conftest import FAMILIES, Answer, MakeModel, Model, run

NUM_REQUESTS = 32
MODELS = [*FAMILIES, "demo"]


def mixed_request(draw: random.Random, index: int) -> GenerationRequest:
    is_greedy = index % 4 == 0
    shared = [11, 12, 13, 14, 15, 16, 17, 18, 19]
    prompt = (shared if index % 3 == 0 else []) + draw.choices(range(256), k=draw.randint(1, 24))
    sampling = SamplingParams(
        temperature=0 if is_greedy else draw.choice([0.5, 0.9, 1.5]),
        max_tokens=draw.randint(1, 16),
        min_tokens=draw.choice([0, 1]),
        seed=draw.randint(0, 2**40),
        top_p=draw.choice([1.0, 0.8]),
        top_k=draw.choice([0, 20]),
        min_p=draw.choice([0.0, 0.05]),
        repetition_penalty=draw.choice([1.0, 1.0, 1.2]),
        presence_penalty=draw.choice([0.0, 0.5]),
        frequency_penalty=draw.choice([0.0, 0.3]),
        logprobs=draw.choice([None, 0, 3]),
        ignore_eos=draw.random() < 0.5,
        stop_token_ids=tuple(draw.sample(range(256), draw.choice([0, 10]))),
    )
    return GenerationRequest(
        request_id=RequestId(f"r{index}"),
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        choice_index=draw.choice([0, 0, 1]),
    )


REQUESTS = [mixed_request(random.Random(index), index) for index in range(NUM_REQUESTS)]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Model:
    return make_model(request.param)


_ALONE: dict[Model, list[Answer]] = {}


@pytest.fixture
def alone(model: Model) -> list[Answer]:
    """What each request gets from an engine of its own that caches nothing."""
    if model not in _ALONE:
        engine = model.engine(caches=False)
        _ALONE[model] = [run(engine, [request])[0] for request in REQUESTS]
    return _ALONE[model]


def assert_same(answers: list[Answer], alone: list[Answer]) -> None:
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]
    assert [answer.finish_reason for answer in answers] == [answer.finish_reason for answer in alone]
    for ours, theirs in zip(answers, alone, strict=True):
        assert [item.logprob for item in ours.logprobs] == pytest.approx(
            [item.logprob for item in theirs.logprobs], abs=1e-4
        )


def test_requests_at_once_give_the_tokens_of_each_alone(model: Model, alone: list[Answer]) -> None:
    assert_same(run(model.engine(caches=False), REQUESTS), alone)


def test_requests_that_arrive_one_by_one_give_the_same_tokens(model: Model, alone: list[Answer]) -> None:
    assert_same(run(model.engine(), REQUESTS, arrivals_per_step=1), alone)


def test_chunks_of_seven_give_the_same_tokens(model: Model, alone: list[Answer]) -> None:
    assert_same(run(model.engine(budget=7, max_num_seqs=7), REQUESTS, arrivals_per_step=2), alone)


@pytest.mark.parametrize("caches", [True, False])
def test_preempted_requests_give_the_same_tokens(model: Model, alone: list[Answer], caches: bool) -> None:
    engine = model.engine(num_pages=20, caches=caches)
    assert_same(run(engine, REQUESTS), alone)
    assert engine.counters().num_preemptions > 0


def test_prefix_hits_give_the_same_tokens(model: Model, alone: list[Answer]) -> None:
    engine = model.engine(num_pages=1024)
    run(engine, REQUESTS)
    again = [dataclasses.replace(request, request_id=RequestId(f"again-{i}")) for i, request in enumerate(REQUESTS)]
    answers = run(engine, again)
    assert_same(answers, alone)
    assert [answer.num_cached_tokens for answer in answers] == [
        len(request.prompt_token_ids) - 1 for request in REQUESTS
    ]


def test_replays_give_the_rest_of_the_same_stream(model: Model, alone: list[Answer]) -> None:
    """As after the loss of a replica: another engine goes on after half of the tokens."""
    halves = [answer.token_ids[: len(answer.token_ids) // 2] for answer in alone]
    replays = [
        dataclasses.replace(request, emitted_token_ids=tuple(half))
        for request, half in zip(REQUESTS, halves, strict=True)
    ]
    answers = run(model.engine(), replays)
    assert [half + answer.token_ids for half, answer in zip(halves, answers, strict=True)] == [
        answer.token_ids for answer in alone
    ]
