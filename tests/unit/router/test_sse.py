import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message, Scope

from kvasir_protocol.errors import ServiceUnavailable, StreamLost
from kvasir_router.http_errors import ClientLeft
from kvasir_router.sse import DONE_FRAME, EventStream, frame, unless_client_leaves

pytestmark = pytest.mark.anyio


SCOPE: Scope = {"type": "http", "state": {"request_id": "r"}}


class Client:
    """The server's side of one ASGI connection."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.has_frame = asyncio.Event()
        self.leaves = asyncio.Event()

    async def receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.has_frame.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def frames(*items: bytes, error: Exception | None = None, hangs: bool = False) -> AsyncGenerator[bytes, None]:
    for item in items:
        yield item
    if error is not None:
        raise error
    if hangs:
        await asyncio.Event().wait()


def test_frame_is_compact_json_in_utf8() -> None:
    assert frame({"text": "é\n", "n": [1, 2]}) == 'data: {"text":"é\\n","n":[1,2]}\n\n'.encode()


async def test_frames_are_sent_one_by_one() -> None:
    client = Client()
    await EventStream(frames(b"a", b"b"))(SCOPE, client.receive, client.send)
    assert [message.get("body") for message in client.sent] == [None, b"a", b"b", b""]
    assert client.sent[0]["status"] == 200
    assert client.sent[-1]["more_body"] is False


async def test_error_before_the_first_frame_is_raised_with_nothing_sent() -> None:
    client = Client()
    with pytest.raises(ServiceUnavailable):
        await EventStream(frames(error=ServiceUnavailable("x")))(SCOPE, client.receive, client.send)
    assert client.sent == []


async def test_later_error_is_the_last_frame() -> None:
    client = Client()
    await EventStream(frames(b"a", error=StreamLost("gone")))(SCOPE, client.receive, client.send)
    last = json.loads(client.body.removeprefix(b"adata: "))
    assert last["error"]["code"] == "stream_lost"
    assert [message.get("more_body") for message in client.sent] == [None, True, False]


async def test_answer_ends_with_the_item_that_says_so() -> None:
    client = Client()
    await EventStream(frames(b"a", b"b" + DONE_FRAME))(SCOPE, client.receive, client.send)
    assert client.sent[2:] == [{"type": "http.response.body", "body": b"b" + DONE_FRAME, "more_body": False}]


async def test_error_after_the_end_changes_nothing() -> None:
    client = Client()
    await EventStream(frames(DONE_FRAME, error=StreamLost("gone")))(SCOPE, client.receive, client.send)
    assert client.body == DONE_FRAME


async def test_stream_is_closed_when_the_client_leaves() -> None:
    client, generator = Client(), frames(b"a", hangs=True)
    serving = asyncio.create_task(EventStream(generator)(SCOPE, client.receive, client.send))
    await asyncio.wait_for(client.has_frame.wait(), 5)
    client.leaves.set()
    await asyncio.wait_for(serving, 5)
    with pytest.raises(StopAsyncIteration):
        await anext(generator)


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    client, was_cancelled = Client(), asyncio.Event()

    async def work() -> None:
        client.leaves.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    with pytest.raises(ClientLeft):
        await unless_client_leaves(client.receive, work())
    assert was_cancelled.is_set()


async def test_result_of_the_work_is_returned() -> None:
    async def work() -> int:
        return 5

    assert await unless_client_leaves(Client().receive, work()) == 5


async def test_work_that_the_stopping_server_cancels_is_unavailable() -> None:
    waiting = asyncio.create_task(unless_client_leaves(Client().receive, asyncio.Event().wait()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(ServiceUnavailable, match="stopping"):
        await waiting
