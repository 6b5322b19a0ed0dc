"""The client against a server that does what each test wants."""

import asyncio
import json
import socket

import pytest

from kvasir.bench.client import LoadClient, Question, Target
from kvasir.bench.http_client import Origin
from kvasir.bench.stub_server import DONE, END, HEAD, TEXT_TOKEN, canned, event, http_chunk, stub_server

pytestmark = pytest.mark.anyio

FINISH = event({"choices": [{"text": "", "finish_reason": "length"}]})


def question(max_tokens=3, text="why?"):
    return Question(messages=[{"role": "user", "content": text}], num_tokens=7, max_tokens=max_tokens, planned_s=0.0)


async def ask(answer=canned, *, max_tokens=3, **target):
    async with stub_server(answer) as url:
        client = LoadClient(Target(origin=Origin.from_url(url), model="m", **target))
        try:
            return await client.ask(question(max_tokens))
        finally:
            client.close()


def saying(*pieces):
    """A server that sends these, then closes the connection."""

    async def answer(body):
        for piece in pieces:
            yield piece
        raise ConnectionError

    return answer


@pytest.mark.parametrize("is_chat", [False, True])
async def test_a_stream_is_recorded_chunk_by_chunk(is_chat):
    record = await ask(is_chat=is_chat)
    assert record.failure is None
    assert (record.text, len(record.chunk_s), record.num_output_tokens) == (" word word word", 3, 3)
    assert record.counted_by == "usage"
    assert record.sent_s <= record.chunk_s[0] <= record.chunk_s[-1] <= record.ended_s


async def test_prompt_tokens_are_those_of_the_usage_and_else_those_of_the_workload():
    assert (await ask()).num_prompt_tokens == 1
    assert (await ask(saying(HEAD, TEXT_TOKEN, FINISH, DONE))).num_prompt_tokens == 7


async def test_without_usage_tokens_are_the_chunks_with_text():
    guessed = await ask(saying(HEAD, TEXT_TOKEN, TEXT_TOKEN, FINISH, DONE))
    assert (guessed.num_output_tokens, guessed.counted_by) == (2, "chunks")


@pytest.mark.parametrize(("status", "reason"), [(400, "too long"), (429, "slow down"), (503, "no replica")])
async def test_a_refusal_fails_by_its_status(status, reason):
    body = json.dumps({"error": {"message": reason}}).encode()
    head = f"HTTP/1.1 {status} No\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    record = await ask(saying(head + body))
    assert str(record.failure) == f"HTTP {status}: {reason}"


async def test_a_connection_that_breaks_in_mid_stream_fails_and_keeps_what_came():
    record = await ask(saying(HEAD, TEXT_TOKEN))
    assert record.failure.cause == "broken off in mid-stream"
    assert record.text == " word"


async def test_a_connection_that_breaks_before_the_answer_fails():
    assert (await ask(saying())).failure.cause == "broken off before text"
    assert (await ask(saying(b"this is not HTTP\r\n\r\n"))).failure.cause == "broken off before text"


async def test_a_malformed_stream_fails():
    record = await ask(saying(HEAD, TEXT_TOKEN, http_chunk(b"data: {oops\n\n"), DONE))
    assert str(record.failure) == "malformed stream: {oops"


async def test_an_answer_that_never_ends_times_out():
    async def endless(body):
        yield HEAD + TEXT_TOKEN
        await asyncio.Event().wait()

    record = await ask(endless, timeout_s=0.05)
    assert record.failure.cause == "timeout"


async def test_nobody_listening_is_a_failure():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = LoadClient(Target(origin=Origin(host="127.0.0.1", port=port), model="m"))
    assert (await client.ask(question())).failure.cause == "no connection"


async def test_a_body_without_a_length_lasts_until_the_connection_closes():
    frames = b"".join(b"data: " + json.dumps({"choices": [{"text": "a", "finish_reason": end}]}).encode() + b"\n\n"
                      for end in (None, "stop"))  # fmt: skip
    record = await ask(saying(b"HTTP/1.0 200 OK\r\n\r\n" + frames))
    assert (record.failure, record.text) == (None, "aa")


async def test_a_request_says_what_it_was_told_to():
    bodies = []

    async def note(body):
        bodies.append(body)
        yield HEAD + FINISH + END

    await ask(note, ignore_eos=True, extra_body={"temperature": 0, "stream_options": None})
    await ask(note, is_chat=True)
    assert bodies[0] == {
        "model": "m", "stream": True, "prompt": "why?", "max_tokens": 3, "ignore_eos": True, "temperature": 0,
    }  # fmt: skip
    assert bodies[1]["messages"] == [{"role": "user", "content": "why?"}]
    assert bodies[1]["max_completion_tokens"] == 3
    assert bodies[1]["stream_options"] == {"include_usage": True}
