"""What sampling parameters may be."""

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import MAX_SEED, GenerationRequest, SamplingParams, TokenBias
from tests.unit.protocol.any_message import plain_values

RANGES: dict[str, tuple[float, float]] = {
    "n": (1, 128),
    "max_tokens": (1, 2**31),
    "min_tokens": (0, 2**31),
    "temperature": (0, 2),
    "top_p": (1e-9, 1),
    "top_k": (-1, 2**31),
    "min_p": (0, 1),
    "seed": (0, MAX_SEED),
    "repetition_penalty": (0.01, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "logprobs": (0, 128),
    "prompt_logprobs": (0, 128),
}
INTEGERS = ("n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs")
NULLABLE = ("max_tokens", "seed", "logprobs", "prompt_logprobs")
TOKEN_LISTS = ("logit_bias", "allowed_token_ids", "bad_words", "bad_word_token_ids")


def make(name: str, value: Any) -> SamplingParams:
    others: dict[str, Any] = {"max_tokens": None} if name == "min_tokens" else {}
    return SamplingParams(**{**others, name: value})


def assert_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        make(name, value)
    assert caught.value.field == name


@pytest.mark.parametrize("name", RANGES)
def test_both_ends_of_a_range_are_allowed(name: str) -> None:
    assert [getattr(make(name, end), name) for end in RANGES[name]] == list(RANGES[name])


@pytest.mark.parametrize("name", RANGES)
def test_numbers_beyond_a_range_are_refused(name: str) -> None:
    low, high = RANGES[name]
    step = 1 if name in INTEGERS else 1e-6 if name != "top_p" else 1e-9
    assert_refused(name, low - step)
    assert_refused(name, high + step)


def test_ends_of_a_range_are_told_in_full() -> None:
    with pytest.raises(InvalidRequest, match="between -1 and 2147483648, got 2147483649"):
        SamplingParams(top_k=2**31 + 1)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(name: str, value: float) -> None:
    assert_refused(name, value)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [True, "1", [1], {}])
def test_what_is_no_number_is_refused(name: str, value: object) -> None:
    assert_refused(name, value)


@pytest.mark.parametrize("name", INTEGERS)
def test_counts_are_whole_numbers(name: str) -> None:
    assert_refused(name, 1.0)


@pytest.mark.parametrize("name", sorted(RANGES.keys() - set(NULLABLE)))
def test_only_some_numbers_may_be_none(name: str) -> None:
    assert_refused(name, None)


@pytest.mark.parametrize("name", ["ignore_eos", "include_stop_str_in_output", "skip_special_tokens"])
def test_flag_is_true_or_false(name: str) -> None:
    assert_refused(name, "false")


def test_one_stop_string_is_a_list_of_one() -> None:
    assert make("stop", "end").stop == ("end",)


def test_lists_become_tuples() -> None:
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[1, 2])  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids) == (("a", "b"), (1, 2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", ("a", "")),
        ("stop", (1,)),
        ("stop", None),
        ("stop", ("\ud800",)),
        ("stop_token_ids", "12"),
        ("stop_token_ids", (True,)),
        ("stop_token_ids", (1.0,)),
        ("stop_token_ids", None),
    ],
)
def test_bad_stops_are_refused(name: str, value: object) -> None:
    assert_refused(name, value)


def test_bias_may_be_a_map() -> None:
    assert make("logit_bias", {3: 1.5, 4: -100}).logit_bias == (TokenBias(3, 1.5), TokenBias(4, -100))


def test_none_means_no_tokens() -> None:
    params = SamplingParams(logit_bias=None, allowed_token_ids=None, bad_words=None)  # type: ignore[arg-type]
    assert params == SamplingParams()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {3: 101}),
        ("logit_bias", {3: math.nan}),
        ("logit_bias", {3: "1"}),
        ("logit_bias", {"3": 1}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", 5),
        ("logit_bias", dict.fromkeys(range(1025), 1)),
        ("logit_bias", (TokenBias(1, 1), TokenBias(1, 2))),
        ("allowed_token_ids", "12"),
        ("allowed_token_ids", (1.0,)),
        ("bad_words", ("a", " ")),
        ("bad_words", (1,)),
        ("bad_words", tuple("a" for _ in range(1025))),
        ("bad_word_token_ids", ((1, "a"),)),
        ("bad_word_token_ids", 7),
    ],
)
def test_bad_token_lists_are_refused(name: str, value: object) -> None:
    assert_refused(name, value)


def test_bad_words_that_forbid_all_allowed_tokens_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="forbid every token"):
        SamplingParams(allowed_token_ids=(1, 2), bad_word_token_ids=((2,), (1,), (3,)))


def test_min_tokens_above_max_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"min_tokens \(3\) must not exceed max_tokens \(2\)"):
        SamplingParams(min_tokens=3, max_tokens=2)


def test_several_greedy_choices_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="n must be 1 with temperature 0"):
        SamplingParams(n=2, temperature=0)


@settings(max_examples=300)
@given(
    fields=st.dictionaries(
        st.sampled_from([*RANGES, *TOKEN_LISTS, "stop", "stop_token_ids", "ignore_eos"]), plain_values
    )
)
def test_any_values_make_parameters_or_invalid_request(fields: dict[str, Any]) -> None:
    with suppress(InvalidRequest):
        SamplingParams(**fields)


def test_unresolved_max_tokens_is_a_broken_invariant() -> None:
    request = GenerationRequest(
        request_id=RequestId("r"), prompt_token_ids=(1,), sampling=SamplingParams(max_tokens=None)
    )
    with pytest.raises(AssertionError, match="max_tokens was not resolved"):
        _ = request.max_tokens
