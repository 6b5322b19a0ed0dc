"""Pages reused up to the token: the same answers as without a cache, and as much reuse as there can be."""

import random

import pytest

from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.kv.manager import MIN_COPIED_TOKENS
from tests.integration.engine.conftest import FAMILIES, MakeModel, Model, run
from tests.integration.engine.contamination import Soak

MODELS = [*FAMILIES, "demo"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Model:
    return make_model(request.param)


def greedy(name: str, prompt: list[int], *, max_tokens: int = 8, salt: str = "") -> GenerationRequest:
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, seed=0, ignore_eos=True, logprobs=0)
    return GenerationRequest(
        request_id=RequestId(name), prompt_token_ids=tuple(prompt), sampling=sampling, cache_salt=salt
    )


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=length)


def assert_as_without_cache(model: Model, engine: Engine, request: GenerationRequest) -> int:
    """The request's answer from this engine is that of one without cache; how many tokens were cached."""
    (ours,), (alone,) = run(engine, [request]), run(model.engine(caches=False, page_size=16), [request])
    assert ours.token_ids == alone.token_ids
    assert [item.logprob for item in ours.logprobs] == pytest.approx(
        [item.logprob for item in alone.logprobs], abs=1e-4
    )
    return ours.num_cached_tokens


@pytest.mark.parametrize("num_common", [1, 2, 7, 15, 16, 17, 31, 32, 47, 49])
def test_prompts_that_part_at_any_token_give_the_same_answer(model: Model, num_common: int) -> None:
    engine = model.engine(page_size=16)
    run(engine, [greedy("first", prompt_of(50))])
    prompt = [*prompt_of(num_common), 255 - prompt_of(50)[num_common], *prompt_of(9, seed=1)]
    num_copied = num_common % 16
    expected = num_common if num_copied == 0 or num_copied >= MIN_COPIED_TOKENS else num_common - num_copied
    assert assert_as_without_cache(model, engine, greedy("second", prompt)) == expected


def test_each_turn_of_a_chat_computes_only_what_is_new(model: Model) -> None:
    """All but the last token of the last answer, which was never fed to the model."""
    engine, history, num_reusable = model.engine(page_size=16), prompt_of(21), 0
    for turn in range(5):
        request = greedy(f"turn-{turn}", history)
        assert assert_as_without_cache(model, engine, request) == num_reusable
        (again,) = run(model.engine(caches=False, page_size=16), [request])
        history = [*history, *again.token_ids]
        num_reusable = len(history) - 1
        history += prompt_of(5, seed=turn)


def test_several_at_once_copy_from_the_same_page(model: Model) -> None:
    engine, shared = model.engine(page_size=16), prompt_of(40)
    run(engine, [greedy("first", shared)])
    requests = [greedy(f"r{i}", [*shared[:37], (shared[37] + 1 + i) % 256, i]) for i in range(6)]
    answers = run(engine, requests)
    alone = [run(model.engine(caches=False, page_size=16), [request])[0] for request in requests]
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]
    assert {answer.num_cached_tokens for answer in answers} == {37}


def test_of_equal_prompts_one_is_computed(model: Model) -> None:
    """Whole pages of it: 96 tokens of 101. The last one is still being filled when the others come."""
    engine = model.engine(page_size=16, budget=48, overlap=False)
    requests = [greedy(f"r{i}", [*prompt_of(100), i]) for i in range(5)]
    answers = run(engine, requests)
    alone = [run(model.engine(caches=False, page_size=16), [request])[0] for request in requests]
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]
    assert [answer.num_cached_tokens for answer in answers] == [0, 96, 96, 96, 96]
    assert engine.counters().computed_prompt_tokens == 101 + 4 * 5


def test_other_salt_shares_no_part_of_a_page(make_model: MakeModel) -> None:
    model = make_model("demo")
    engine = model.engine(page_size=16)
    run(engine, [greedy("first", prompt_of(50), salt="one")])
    assert assert_as_without_cache(model, engine, greedy("second", prompt_of(50), salt="two")) == 0


@pytest.mark.parametrize("seed", range(2))
def test_nobody_sees_anothers_tokens(make_model: MakeModel, seed: int) -> None:
    """Tagged prompts with shared beginnings in a small pool, a quarter aborted while their prompts are computed."""
    soak = Soak(make_model("LlamaForCausalLM"), seed=seed)
    soak.run(num_requests=150)
    assert soak.num_wrong == 0
    assert soak.num_aborted > 20
    assert soak.engine.counters().cached_prompt_tokens > 0
