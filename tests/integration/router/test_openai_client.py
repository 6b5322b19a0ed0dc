"""The official client against the router, over separate pools."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from kvasir_protocol.messages import Reserve, Submit
from tests.fakes.replica import FakeReplica
from tests.fakes.serving import MODEL_NAME, MakeSettings, serving
from tests.integration.router.conftest import TEXT

pytestmark = pytest.mark.anyio

HELLO: list[Any] = [{"role": "user", "content": "hello"}]

Pools = tuple[FakeReplica, FakeReplica]
Connect = Callable[[], Any]


@pytest.fixture
def connect(pools: Pools, make_settings: Callable[..., MakeSettings]) -> Connect:
    @asynccontextmanager
    async def connected() -> AsyncIterator[openai.AsyncOpenAI]:
        async with (
            serving(make_settings(), *pools) as server,
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        ):
            yield client

    return connected


async def test_models_are_listed_and_shown(connect: Connect) -> None:
    async with connect() as client:
        assert [model.id async for model in client.models.list()] == [MODEL_NAME]
        assert (await client.models.retrieve(MODEL_NAME)).owned_by == "kvasir"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("another")


async def test_chat_answers_in_one_piece(connect: Connect, tokenizer: Tokenizer) -> None:
    async with connect() as client:
        answer = await client.chat.completions.create(model=MODEL_NAME, messages=HELLO)
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (TEXT, "assistant", "stop")
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("kvasir-")
    assert answer.usage.completion_tokens == len(tokenizer.encode(TEXT).ids) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


async def test_chat_streams_the_same_text(connect: Connect) -> None:
    async with connect() as client:
        stream = await client.chat.completions.create(
            model=MODEL_NAME, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-2:] == [None, "stop"]
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len({chunk.id for chunk in chunks}) == 1


async def test_completion_of_text_and_of_ids(connect: Connect, pools: Pools) -> None:
    async with connect() as client:
        answer = await client.completions.create(model=MODEL_NAME, prompt=[5, 6, 7])
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 16
        assert answer.usage.prompt_tokens == 3
        assert pools[0].got(Submit)[0].request.prompt_token_ids == (5, 6, 7)
        answer = await client.completions.create(model=MODEL_NAME, prompt="Once", max_tokens=3)
        assert TEXT.startswith(answer.choices[0].text)


async def test_completion_streams_the_same_text(connect: Connect) -> None:
    async with connect() as client:
        stream = await client.completions.create(model=MODEL_NAME, prompt="Once", max_tokens=100, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT


async def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(connect: Connect, pools: Pools) -> None:
    async with connect() as client:
        answer = await client.completions.create(model=MODEL_NAME, prompt=[[5], [6, 7]], n=2, max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 8
    requests = sorted((message.request for message in pools[1].got(Reserve)), key=lambda request: request.request_id)
    assert [(request.prompt_token_ids, request.choice_index) for request in requests] == [
        ((5,), 0),
        ((5,), 1),
        ((6, 7), 0),
        ((6, 7), 1),
    ]
    assert requests[0].seed == requests[1].seed


async def test_two_choices_stream_side_by_side(connect: Connect) -> None:
    texts = {0: "", 1: ""}
    async with connect() as client:
        stream = await client.chat.completions.create(model=MODEL_NAME, messages=HELLO, n=2, stream=True)
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: TEXT, 1: TEXT}


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_string_ends_the_answer_and_the_work(connect: Connect, pools: Pools, *, stream: bool) -> None:
    async with connect() as client:
        options: dict[str, Any] = {"model": MODEL_NAME, "messages": HELLO, "stop": ["jumps", "never"]}
        if stream:
            chunks = [chunk async for chunk in await client.chat.completions.create(**options, stream=True)]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            (choice,) = (await client.chat.completions.create(**options)).choices
            text, reason = choice.message.content, choice.finish_reason
        assert (text, reason) == ("The quick brown fox 😀 ", "stop")
        for replica in pools:
            await replica.until(lambda replica: not replica.held)


async def test_chat_logprobs_are_those_of_the_tokens(connect: Connect, tokenizer: Tokenizer) -> None:
    async with connect() as client:
        options: dict[str, Any] = {"model": MODEL_NAME, "messages": HELLO, "logprobs": True, "top_logprobs": 2}
        whole = await client.chat.completions.create(**options)
        chunks = [chunk async for chunk in await client.chat.completions.create(**options, stream=True)]
    content = whole.choices[0].logprobs.content
    streamed = [entry for chunk in chunks if (found := chunk.choices[0].logprobs) for entry in found.content]
    assert streamed == content
    assert bytes(byte for entry in content[:-1] for byte in entry.bytes).decode() == TEXT
    assert [len(entry.top_logprobs) for entry in content] == [2] * len(content)


async def test_completion_logprobs_tell_offsets(connect: Connect) -> None:
    async with connect() as client:
        answer = await client.completions.create(model=MODEL_NAME, prompt="x", max_tokens=5, logprobs=1)
    (choice,) = answer.choices
    offsets, tokens = choice.logprobs.text_offset, choice.logprobs.tokens
    assert [choice.text[offset : offset + len(token)] for offset, token in zip(offsets, tokens, strict=True)] == tokens


async def test_seed_and_sampling_options_reach_the_replica(connect: Connect, pools: Pools) -> None:
    async with connect() as client:
        await client.chat.completions.create(
            model=MODEL_NAME,
            messages=HELLO,
            seed=77,
            temperature=0.5,
            max_completion_tokens=3,
            extra_body={"top_k": 4, "cache_salt": "tenant"},
        )
    request = pools[0].got(Submit)[0].request
    assert (request.seed, request.sampling.temperature, request.max_tokens) == (77, 0.5, 3)
    assert (request.sampling.top_k, request.cache_salt) == (4, "tenant")


async def test_without_a_seed_every_request_gets_its_own(connect: Connect, pools: Pools) -> None:
    async with connect() as client:
        for _ in range(2):
            await client.chat.completions.create(model=MODEL_NAME, messages=HELLO, max_tokens=1)
    first, second = (message.request.seed for message in pools[0].got(Submit))
    assert first != second


async def test_chat_may_go_on_to_the_end_of_the_context(connect: Connect, pools: Pools) -> None:
    async with connect() as client:
        await client.chat.completions.create(model=MODEL_NAME, messages=HELLO)
    request = pools[0].got(Submit)[0].request
    assert request.max_tokens + len(request.prompt_token_ids) == 1000


async def test_errors_are_the_clients_own_types(connect: Connect) -> None:
    async with connect() as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="another", messages=HELLO)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as invalid:
            await client.chat.completions.create(model=MODEL_NAME, messages=HELLO, temperature=9)
        assert invalid.value.param == "temperature"
