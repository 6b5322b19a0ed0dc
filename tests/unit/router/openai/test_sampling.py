import pytest

from kvasir_protocol.errors import ContextTooLong, InvalidRequest
from kvasir_protocol.request import SamplingParams
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
