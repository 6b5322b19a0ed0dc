import pytest

from kvasir_protocol.errors import ContextTooLong, InvalidRequest
from kvasir_protocol.request import SamplingParams, TokenBias
from kvasir_router.model_files import GenerationDefaults
from kvasir_router.openai.bodies import ChatBody, CompletionBody
from kvasir_router.openai.sampling import chat_sampling, completion_sampling, resolve_max_tokens

DEFAULTS = GenerationDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.05, repetition_penalty=1.1)


def completion(**options: object) -> SamplingParams:
    return completion_sampling(CompletionBody.model_validate({"prompt": "x", **options}), DEFAULTS)


def chat(**options: object) -> SamplingParams:
    return chat_sampling(ChatBody.model_validate({"messages": [{"role": "user"}], **options}), DEFAULTS)


def test_silent_caller_gets_the_models_defaults() -> None:
    assert completion() == SamplingParams(
        max_tokens=None, temperature=0.6, top_p=0.9, top_k=20, min_p=0.05, repetition_penalty=1.1
    )


def test_callers_values_win_even_when_they_are_zero() -> None:
    sampling = completion(temperature=0, top_k=0, min_p=0, top_p=1, repetition_penalty=1)
    assert sampling == SamplingParams(max_tokens=None, temperature=0)


def test_all_options_arrive() -> None:
    sampling = completion(
        n=2, max_tokens=9, min_tokens=3, seed=5, stop="a", stop_token_ids=[4], ignore_eos=True, logprobs=2,
        presence_penalty=0.5, frequency_penalty=-0.5, include_stop_str_in_output=True, skip_special_tokens=False,
    )  # fmt: skip
    assert (sampling.n, sampling.max_tokens, sampling.min_tokens, sampling.seed) == (2, 9, 3, 5)
    assert (sampling.stop, sampling.stop_token_ids, sampling.logprobs) == (("a",), (4,), 2)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert sampling.ignore_eos and sampling.include_stop_str_in_output and not sampling.skip_special_tokens


def test_chat_logprobs_are_a_flag_and_a_number() -> None:
    assert chat().logprobs is None
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=True, top_logprobs=5).logprobs == 5


def test_newer_name_of_max_tokens_counts() -> None:
    assert chat(max_completion_tokens=7).max_tokens == 7
    assert chat(max_completion_tokens=7, max_tokens=7).max_tokens == 7


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"temperature": float("nan")}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_contradictions_are_refused_by_name(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("max_tokens", "default", "expected"), [(None, None, 90), (None, 16, 16), (None, 200, 90), (90, 16, 90), (1, 16, 1)]
)
def test_max_tokens_is_settled_within_the_context(max_tokens: int | None, default: int | None, expected: int) -> None:
    assert resolve_max_tokens(max_tokens, 10, 100, default) == expected


def test_prompt_that_fills_the_context_is_too_long() -> None:
    with pytest.raises(ContextTooLong, match="100 tokens; the context of 100") as caught:
        resolve_max_tokens(None, 100, 100)
    assert caught.value.field == "prompt"


def test_answer_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(ContextTooLong, match="lower max_tokens to 90") as caught:
        resolve_max_tokens(91, 10, 100)
    assert caught.value.field == "max_tokens"


def test_token_lists_arrive() -> None:
    sampling = chat(logit_bias={"5": 1.5, "7": -100}, allowed_token_ids=[5, 7], bad_words=["bad"])
    assert sampling.logit_bias == (TokenBias(5, 1.5), TokenBias(7, -100))
    assert (sampling.allowed_token_ids, sampling.bad_words) == ((5, 7), ("bad",))


def test_echo_with_logprobs_asks_for_those_of_the_prompt() -> None:
    assert completion(echo=True).prompt_logprobs is None
    assert completion(echo=True, logprobs=2).prompt_logprobs == 2
    assert completion(logprobs=2).prompt_logprobs is None
    assert completion(prompt_logprobs=3).prompt_logprobs == 3
    assert completion(prompt_logprobs=3, echo=True, logprobs=5).prompt_logprobs == 5


def test_echo_alone_makes_one_token_that_nobody_sees() -> None:
    assert completion(echo=True, max_tokens=0).max_tokens == 1


def test_best_of_makes_more_answers_and_scores_them() -> None:
    sampling = completion(n=2, best_of=5)
    assert (sampling.n, sampling.logprobs) == (5, 0)
    assert completion(n=2, best_of=2).logprobs is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"best_of": 0}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "temperature": 0}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias"),
        ({"bad_words": [""]}, "bad_words"),
    ],
)
def test_contradictions_of_completions_are_refused_by_name(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**options)
    assert caught.value.field == field
