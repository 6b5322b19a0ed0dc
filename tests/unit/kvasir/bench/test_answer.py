import json

from kvasir.bench.answer import AnswerReader


def data(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(text, finish_reason=None):
    return data(choices=[{"text": text, "finish_reason": finish_reason}])


def read(*pieces, status=200):
    """Each piece comes a second after the one before."""
    reader = AnswerReader()
    for second, piece in enumerate(pieces):
        reader.feed(status, piece, float(second))
    return reader, reader.failure(status)


def test_only_chunks_with_text_are_tokens_and_the_finish_ends_the_answer():
    reader, failure = read(text("a"), text(""), text("b"), text("", "length"), data(choices=[], usage={"x": 1}))
    assert failure is None
    assert (reader.text, reader.chunk_s, reader.ended_s, reader.usage) == ("ab", [0.0, 2.0], 3.0, {"x": 1})


def test_a_chat_answers_with_what_it_thinks_and_says():
    deltas = [{"role": "assistant"}, {"reasoning_content": "hm "}, {"content": "yes"}]
    reader, failure = read(*(data(choices=[{"delta": delta}]) for delta in deltas), b"data: [DONE]\n\n")
    assert failure is None
    assert (reader.text, reader.chunk_s) == ("hm yes", [1.0, 2.0])


def test_a_status_that_is_an_error_fails_with_its_message():
    _, failure = read(b'{"error": {"mess', b'age": "too long"}}', status=400)
    assert str(failure) == "HTTP 400: too long"
    _, failure = read(b"Bad Gateway", status=502)
    assert str(failure) == "HTTP 502: Bad Gateway"


def test_an_error_within_the_stream_fails_although_text_came():
    _, failure = read(text("a"), data(error={"message": "replica lost"}))
    assert str(failure) == "error in the stream: replica lost"


def test_streams_that_are_none_fail_each_by_its_cause():
    assert read(text("a"), b"data: {no json\n\n")[1].cause == "malformed stream"
    assert read(b"data: 5\n\n")[1].cause == "malformed stream"
    assert read(text("a", "stop"), b"data: {")[1].cause == "malformed stream"
    assert read(text("a"))[1].cause == "incomplete stream"
    assert read(b"data: [DONE]\n\n")[1].cause == "empty stream"
    assert read()[1].cause == "incomplete stream"
