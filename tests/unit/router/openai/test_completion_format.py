"""The prompt before its answer, its scores, and the best of several."""

from dataclasses import replace

import pytest

from kvasir_protocol.events import TokenLogprobs
from kvasir_router.openai.completion_format import BestOf, CompletionFormat, Echo
from kvasir_router.pieces import Piece, PromptPiece, ScoredToken
from kvasir_router.tokenise import TextCodec

TEXT = "The quick"


def scores(logprob: float) -> TokenLogprobs:
    return TokenLogprobs(logprob=logprob, top_token_ids=(7, 8), top_logprobs=(-0.5, -1.5))


@pytest.fixture
def piece(codec: TextCodec) -> Piece:
    ids = tuple(codec.encode(TEXT))
    return Piece(
        choice_index=0,
        text=" fox",
        token_ids=(9,),
        scored=(ScoredToken(9, scores(-2.0), 0),),
        finish_reason="length",
        prompt=PromptPiece(ids, tuple(scores(-3.0) for _ in ids[1:])),
    )


def echoing(codec: TextCodec, num_logprobs: int | None) -> CompletionFormat:
    return CompletionFormat(codec, shows_token_ids=False, echo=Echo((TEXT,), 1, num_logprobs))


def test_echo_puts_the_prompt_before_the_answer(codec: TextCodec, piece: Piece) -> None:
    choice = echoing(codec, None).choice(replace(piece, scored=()), is_chunk=False)
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == ("The quick fox", None, "length")


def test_echo_with_logprobs_scores_prompt_and_answer(codec: TextCodec, piece: Piece) -> None:
    assert piece.prompt is not None
    num_prompt_tokens = len(piece.prompt.token_ids)
    logprobs = echoing(codec, 1).choice(piece, is_chunk=False)["logprobs"]
    assert "".join(logprobs["tokens"][:num_prompt_tokens]) == TEXT
    assert logprobs["token_logprobs"] == [None, *[-3.0] * (num_prompt_tokens - 1), -2.0]
    assert logprobs["top_logprobs"][0] is None
    assert len(logprobs["top_logprobs"][1]) == 2, "one likeliest token, and the prompt's own"
    for token, offset in zip(logprobs["tokens"][:num_prompt_tokens], logprobs["text_offset"], strict=False):
        assert TEXT[offset:].startswith(token)
    assert logprobs["text_offset"][-1] == len(TEXT)


def test_streamed_echo_comes_first_and_once(codec: TextCodec, piece: Piece) -> None:
    answer_format = echoing(codec, 1)
    opening = answer_format.opening(piece)
    assert opening is not None
    assert (opening["text"], opening["finish_reason"]) == (TEXT, None)
    chunk = answer_format.choice(piece, is_chunk=True)
    assert (chunk["text"], chunk["logprobs"]["tokens"]) == (" fox", [codec.token_text(9)])
    assert chunk["logprobs"]["text_offset"] == [len(TEXT)]
    assert answer_format.opening(replace(piece, prompt=None)) is None


def test_prompt_logprobs_are_by_id_as_in_vllm(codec: TextCodec, piece: Piece) -> None:
    assert piece.prompt is not None
    choice = CompletionFormat(codec, shows_token_ids=False, num_prompt_logprobs=1).choice(piece, is_chunk=False)
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    assert len(rest) == len(piece.prompt.token_ids) - 1
    own = str(piece.prompt.token_ids[1])
    assert rest[0][own]["logprob"] == -3.0
    assert rest[0]["7"] == {"logprob": -0.5, "rank": 1, "decoded_token": codec.token_text(7)}
    assert "8" not in rest[0]
    assert choice["text"] == " fox"


def test_best_answers_of_each_prompt_are_those_of_the_best_mean(codec: TextCodec) -> None:
    def answer(index: int, *logprobs: float) -> Piece:
        scored = tuple(ScoredToken(5, TokenLogprobs(logprob=logprob), 0) for logprob in logprobs)
        return Piece(choice_index=index, text=str(index), token_ids=(5,), scored=scored, finish_reason="stop")

    answers = [
        answer(0, -1.0, -3.0),
        answer(1, -1.5),
        answer(2, -9.0),
        answer(3, -1.0),
        answer(4, -0.1),
        answer(5, -2.0),
    ]
    best = BestOf(2, 3, keeps_logprobs=False).choose(answers)
    assert [piece.text for piece in best] == ["1", "0", "4", "3"]
    assert [piece.choice_index for piece in best] == [0, 1, 2, 3]
    assert not any(piece.scored for piece in best)
    kept = BestOf(1, 3, keeps_logprobs=True).choose(answers)
    assert [len(piece.scored) for piece in kept] == [1, 1]
