import json
from dataclasses import replace

import pytest

from kvasir_protocol.events import TokenLogprobs
from kvasir_router.openai.completion_format import CompletionFormat
from kvasir_router.openai.formats import AnswerHead, ChatFormat
from kvasir_router.pieces import Piece, ScoredToken
from kvasir_router.tokenise import TextCodec

PIECE = Piece(choice_index=1, text="fox", token_ids=(5, 6), finish_reason="stop")


@pytest.fixture
def scored(codec: TextCodec) -> Piece:
    """One token with two alternatives, it itself not among them, one of which is impossible."""
    first, second = codec.encode("a")[0], codec.encode("b")[0]
    logprobs = TokenLogprobs(logprob=-3.0, top_token_ids=(first, second), top_logprobs=(-0.1, float("-inf")))
    return replace(PIECE, scored=(ScoredToken(codec.encode("c")[0], logprobs, 4),))


def test_completion_has_text(codec: TextCodec) -> None:
    choice = CompletionFormat(codec, shows_token_ids=False).choice(PIECE, is_chunk=True)
    assert choice == {"index": 1, "text": "fox", "logprobs": None, "finish_reason": "stop", "stop_reason": None}


def test_chat_chunk_has_a_delta_and_a_whole_answer_a_message(codec: TextCodec) -> None:
    chat = ChatFormat(codec, shows_token_ids=False)
    assert chat.choice(PIECE, is_chunk=True)["delta"] == {"content": "fox"}
    assert chat.choice(replace(PIECE, text=""), is_chunk=True)["delta"] == {}
    message = {"role": "assistant", "content": "fox", "refusal": None}
    assert chat.choice(PIECE, is_chunk=False)["message"] == message


def test_chat_begins_with_the_role(codec: TextCodec) -> None:
    opening = ChatFormat(codec, shows_token_ids=False).opening(replace(PIECE, choice_index=2))
    assert opening is not None
    assert (opening["index"], opening["delta"]) == (2, {"role": "assistant", "content": ""})


def test_completion_logprobs_are_lists_with_the_chosen_token_among_the_top(codec: TextCodec, scored: Piece) -> None:
    choice = CompletionFormat(codec, shows_token_ids=False).choice(scored, is_chunk=False)
    assert choice["logprobs"] == {
        "tokens": ["c"],
        "token_logprobs": [-3.0],
        "top_logprobs": [{"a": -0.1, "b": -9999.0, "c": -3.0}],
        "text_offset": [4],
    }


def test_chat_logprobs_are_entries_with_bytes(codec: TextCodec, scored: Piece) -> None:
    choice = ChatFormat(codec, shows_token_ids=False).choice(scored, is_chunk=True)
    (entry,) = choice["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("c", -3.0, [99])
    assert [top["token"] for top in entry["top_logprobs"]] == ["a", "b"]
    json.dumps(choice, allow_nan=False)


def test_token_ids_are_shown_on_request(codec: TextCodec) -> None:
    assert CompletionFormat(codec, shows_token_ids=True).choice(PIECE, is_chunk=True)["token_ids"] == (5, 6)


def test_head_is_the_same_for_all_chunks() -> None:
    head = AnswerHead(answer_id="cmpl-1", created=5, model="m", fingerprint="f")
    assert head.around("text_completion", []) == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 5,
        "model": "m",
        "system_fingerprint": "f",
        "choices": [],
    }
