"""Answers that watch whether the client is still there, in one piece or as server-sent events."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvasir_protocol.errors import ServiceUnavailable
from kvasir_router.http_errors import ClientLeft, answer_to

logger = logging.getLogger(__name__)

T = TypeVar("T")

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

FRAME_END = b"\n\n"

DONE_FRAME = b"data: [DONE]" + FRAME_END

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
"""The last one asks nginx not to collect frames."""


def to_json(value: dict[str, Any]) -> bytes:
    return _encode(value).encode()


def frame(event: dict[str, Any]) -> bytes:
    return b"data: " + to_json(event) + FRAME_END


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. Raises ClientLeft, after the work was cancelled, if the client closes the connection.

    The server cancels what still runs when it stops: that raises ServiceUnavailable, so that the client is told.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientLeft
    except asyncio.CancelledError:
        raise ServiceUnavailable("this router is stopping; send the request again") from None
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends frames as they come. Nothing is sent before the first: an error until then has its own status code.

    A later error becomes the last frame. However it ends, the generator is closed, and with it the streams behind.
    An item that ends with DONE_FRAME ends the answer with it.
    """

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._frames = frames
        self._has_started = self._has_ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_client_leaves(receive, self._send_all(send))
        except ClientLeft:
            return
        except Exception as error:
            if not self._has_started:
                raise
            # The status line is out: the error itself must travel as a frame.
            answer = answer_to(error)
            is_unexpected = answer.status == 500
            log = logger.error if is_unexpected else logger.warning
            log("%s: ended by %s", scope["state"]["request_id"], error, exc_info=is_unexpected)
            if not self._has_ended:
                await self._send_body(send, frame(answer.body()), more_body=False)
        if not self._has_ended:
            await self._send_body(send, b"", more_body=False)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            async for item in frames:
                if not self._has_started:
                    self._has_started = True
                    await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
                await self._send_body(send, item, more_body=not item.endswith(DONE_FRAME))

    async def _send_body(self, send: Send, body: bytes, *, more_body: bool) -> None:
        self._has_ended = not more_body
        await send({"type": "http.response.body", "body": body, "more_body": more_body})
