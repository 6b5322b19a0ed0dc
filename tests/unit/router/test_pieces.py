from collections.abc import Sequence
from dataclasses import replace

from kvasir_protocol.events import TokenLogprobs, TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import FinishReason, SamplingParams
from kvasir_router.pieces import Piece, PieceReader
from kvasir_router.tokenise import TextCodec
from tests.fakes.requests import make_request

EOS = 1


def output(
    ids: Sequence[int], *, finish: FinishReason | None = None, stop_token: int | None = None, scored: bool = False
) -> TokenOutput:
    return TokenOutput(
        request_id=RequestId("r"),
        first_index=0,
        token_ids=tuple(ids),
        logprobs=tuple(TokenLogprobs(logprob=-float(token_id)) for token_id in ids) if scored else (),
        finish_reason=finish,
        stop_token=stop_token,
        num_cached_tokens=3,
    )


def read(codec: TextCodec, *outputs: TokenOutput, sampling: SamplingParams | None = None) -> list[Piece]:
    reader = PieceReader(make_request(sampling=sampling), 0, codec)
    return [reader.read(each) for each in outputs]


def test_token_that_ended_the_answer_is_counted_but_not_shown(codec: TextCodec) -> None:
    ids = codec.encode("fox")
    (piece,) = read(codec, output([*ids, EOS], finish="stop", stop_token=EOS))
    assert piece.text == "fox"
    assert piece.token_ids == (*ids, EOS)
    assert (piece.finish_reason, piece.stop_reason) == ("stop", None)


def test_stop_token_that_the_caller_named_is_the_stop_reason(codec: TextCodec) -> None:
    fox = codec.encode(" fox")
    sampling = SamplingParams(stop_token_ids=(fox[-1],))
    (piece,) = read(codec, output(fox, finish="stop", stop_token=fox[-1]), sampling=sampling)
    assert piece.stop_reason == fox[-1]
    assert piece.text == codec.decode(fox[:-1])


def test_stop_token_is_shown_with_include_stop_str_in_output(codec: TextCodec) -> None:
    fox = codec.encode(" fox")
    sampling = SamplingParams(stop_token_ids=(fox[-1],), include_stop_str_in_output=True)
    (piece,) = read(codec, output(fox, finish="stop", stop_token=fox[-1]), sampling=sampling)
    assert piece.text == " fox"


def test_stop_string_ends_the_answer_within_an_output(codec: TextCodec) -> None:
    ids = codec.encode("one two three")
    (piece,) = read(codec, output(ids), sampling=SamplingParams(stop=("two",)))
    assert piece.text == "one "
    assert (piece.finish_reason, piece.stop_reason) == ("stop", "two")
    assert piece.token_ids == tuple(codec.encode("one two"))


def test_held_text_comes_with_the_last_piece(codec: TextCodec) -> None:
    ids = codec.encode("a#")
    sampling = SamplingParams(stop=("##",))
    first, last = read(codec, output(ids), output([EOS], finish="stop", stop_token=EOS), sampling=sampling)
    assert (first.text, last.text) == ("a", "#")


def test_answer_cut_by_length_keeps_its_reason(codec: TextCodec) -> None:
    (piece,) = read(codec, output(codec.encode("fox"), finish="length"))
    assert piece.finish_reason == "length"


def test_tokens_are_scored_with_their_place_in_the_text(codec: TextCodec) -> None:
    ids = codec.encode("The quick")
    (piece,) = read(codec, output(ids, scored=True))
    assert [token.token_id for token in piece.scored] == ids
    assert [token.text_offset for token in piece.scored] == [len(codec.decode(ids[:n])) for n in range(len(ids))]


def test_cached_tokens_are_passed_on(codec: TextCodec) -> None:
    assert read(codec, replace(output([5]), num_cached_tokens=9))[0].num_cached_tokens == 9
