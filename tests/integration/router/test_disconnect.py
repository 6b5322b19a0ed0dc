"""A client that leaves frees its replicas, whether it was being answered or still waiting."""

import asyncio
import json
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from kvasir_protocol.messages import Abort
from tests.fakes.replica import DEADLINE_S, FakeReplica
from tests.fakes.serving import MakeSettings, Serving, serving

pytestmark = pytest.mark.anyio


async def post(server: Serving, **options: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A chat request over a socket of its own."""
    url = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], **options}).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return reader, writer


async def all_let_go(server: Serving, *replicas: FakeReplica) -> None:
    for replica in replicas:
        await replica.until(lambda replica: not replica.held)
    status = (await server.client.get("/status")).json()
    assert status["num_inflight"] == 0
    assert [replica["num_inflight"] for replica in status["replicas"]] == [0] * len(replicas)


async def test_client_that_leaves_in_the_middle_of_a_stream(
    pools: tuple[FakeReplica, FakeReplica], make_settings: Callable[..., MakeSettings]
) -> None:
    pools[1].faults.pause_at = 3
    async with serving(make_settings(), *pools) as server:
        reader, writer = await post(server, stream=True)
        await asyncio.wait_for(reader.readuntil(b'"content":" qu"'), DEADLINE_S)
        writer.close()
        await pools[1].until(lambda replica: len(replica.got(Abort)) == 1)
        await all_let_go(server, *pools)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_choices", [1, 2])
async def test_client_that_leaves_before_the_first_token(
    pools: tuple[FakeReplica, FakeReplica],
    make_settings: Callable[..., MakeSettings],
    *,
    stream: bool,
    num_choices: int,
) -> None:
    pools[0].faults.pause_at = 0
    async with serving(make_settings(), *pools) as server:
        _, writer = await post(server, stream=stream, n=num_choices)
        await pools[0].until(lambda replica: len(replica.held) == num_choices)
        writer.close()
        for replica in pools:
            await replica.until(lambda replica: len(replica.got(Abort)) == num_choices)
        await all_let_go(server, *pools)


async def test_client_that_leaves_while_its_whole_answer_is_made(
    pools: tuple[FakeReplica, FakeReplica], make_settings: Callable[..., MakeSettings]
) -> None:
    pools[1].faults.pause_at = 5
    async with serving(make_settings(), *pools) as server:
        _, writer = await post(server)
        await pools[1].until(lambda replica: replica.num_steps == 4)
        writer.close()
        await all_let_go(server, *pools)
