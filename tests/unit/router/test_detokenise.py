from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir_protocol.request import SamplingParams
from kvasir_router.detokenise import Detokeniser, StopMatcher
from kvasir_router.tokenise import TextCodec
from tests.fakes.text_model import SENTENCES, SPECIAL_TOKENS

texts = st.one_of(
    st.sampled_from(SENTENCES),
    st.text(alphabet=st.sampled_from("ab .\n😀👩你é�\u200d"), max_size=30),
)
token_ids = st.lists(st.integers(min_value=0, max_value=399), max_size=40)
stop_strings = st.lists(st.text(alphabet="abc 😀", min_size=1, max_size=4), max_size=3, unique=True)


def streamed(codec: TextCodec, ids: Sequence[int], sampling: SamplingParams | None = None) -> list[str]:
    """The pieces up to a stop string or the end."""
    detokeniser = Detokeniser(codec, sampling or SamplingParams())
    pieces = []
    for token_id in ids:
        pieces.append(detokeniser.push(token_id))
        if detokeniser.stop_string is not None:
            return pieces
    return [*pieces, detokeniser.flush()]


def cut_at_first_stop(text: str, stops: Sequence[str]) -> str:
    """Letter by letter: the first stop string to be complete, the longest of those that end together."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(ids=token_ids)
@settings(max_examples=300)
def test_pieces_of_any_ids_join_to_the_text_of_all_ids(codec: TextCodec, ids: list[int]) -> None:
    assert "".join(streamed(codec, ids)) == codec.decode(ids)


@given(ids=st.lists(st.integers(min_value=0, max_value=330), max_size=40))
@settings(max_examples=300)
def test_pieces_join_to_the_whole_text_with_byte_fallback_as_well(
    byte_fallback_codec: TextCodec, ids: list[int]
) -> None:
    assert "".join(streamed(byte_fallback_codec, ids)) == byte_fallback_codec.decode(ids)


@given(text=texts)
@settings(max_examples=200)
def test_text_survives_the_way_to_tokens_and_back(codec: TextCodec, text: str) -> None:
    assert "".join(streamed(codec, codec.encode(text))) == text


@given(text=texts, stops=stop_strings)
@settings(max_examples=300)
def test_stream_ends_before_the_first_stop_string(codec: TextCodec, text: str, stops: list[str]) -> None:
    sampling = SamplingParams(stop=tuple(stops))
    assert "".join(streamed(codec, codec.encode(text), sampling)) == cut_at_first_stop(text, stops)


@given(text=texts, stops=stop_strings, cuts=st.lists(st.integers(min_value=0, max_value=30), max_size=6))
@settings(max_examples=300)
def test_cutting_the_text_differently_does_not_change_what_a_stop_string_leaves(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops, keep_match=False)
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    found = "".join(matcher.push(text[start:end]) for start, end in pairwise(bounds)) + matcher.flush()
    assert found == cut_at_first_stop(text, stops)


def test_half_a_character_is_held_back(codec: TextCodec) -> None:
    ids = codec.encode("\U0001f9ff")
    assert len(ids) > 1, "the emoji must not be one token for this test"
    pieces = streamed(codec, ids)
    assert pieces[: len(ids) - 1] == [""] * (len(ids) - 1)
    assert "".join(pieces) == "\U0001f9ff"


def test_a_character_that_never_ends_shows_as_replacement(codec: TextCodec) -> None:
    ids = codec.encode("ok \U0001f9ff")[:-1]
    assert "".join(streamed(codec, ids)) == codec.decode(ids)
    assert codec.decode(ids).endswith("\ufffd")


def test_possible_beginning_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    matcher = StopMatcher(["###"], keep_match=False)
    assert [matcher.push("a#"), matcher.push("#"), matcher.push("b"), matcher.flush()] == ["a", "", "##b", ""]


def test_held_text_comes_out_at_the_end() -> None:
    matcher = StopMatcher(["###"], keep_match=False)
    assert matcher.push("a##") + matcher.flush() == "a##"


def test_stop_string_is_kept_when_asked_for(codec: TextCodec) -> None:
    sampling = SamplingParams(stop=("brown",), include_stop_str_in_output=True)
    assert "".join(streamed(codec, codec.encode("quick brown fox"), sampling)) == "quick brown"


def test_stop_string_is_not_searched_in_the_first_min_tokens(codec: TextCodec) -> None:
    ids = codec.encode("fox fox fox")
    num_first = len(codec.encode("fox"))
    sampling = SamplingParams(stop=("fox",), min_tokens=num_first, max_tokens=100)
    assert "".join(streamed(codec, ids, sampling)) == "fox "


@pytest.mark.parametrize(("skip", "expected"), [(True, "ab"), (False, "a<|im_start|>b")])
def test_special_tokens_are_skipped_or_shown(codec: TextCodec, *, skip: bool, expected: str) -> None:
    ids = [*codec.encode("a"), SPECIAL_TOKENS.index("<|im_start|>"), *codec.encode("b")]
    assert "".join(streamed(codec, ids, SamplingParams(skip_special_tokens=skip))) == expected


def test_characters_are_counted_before_stop_strings_take_them(codec: TextCodec) -> None:
    detokeniser = Detokeniser(codec, SamplingParams(stop=("never to be seen",)))
    for token_id in codec.encode("quick never"):
        detokeniser.push(token_id)
    assert detokeniser.num_chars == len("quick never")
