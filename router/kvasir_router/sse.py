"""Answers that watch whether the client is still there, in one piece or as server-sent events."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvasir_router.http_errors import ClientLeft, answer_to

logger = logging.getLogger(__name__)

T = TypeVar("T")

DONE_FRAME = b"data: [DONE]\n\n"

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
"""The last one asks nginx not to collect frames."""


def frame(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. Raises ClientLeft, after the work was cancelled, if the client closes the connection."""
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientLeft
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
    """

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientLeft):
            await unless_client_leaves(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            first = await anext(frames)
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for item in frames:
                    await send({"type": "http.response.body", "body": item, "more_body": True})
            except Exception as error:
                # The status line is out: the error itself must travel as a frame.
                answer = answer_to(error)
                log = logger.error if answer.status == 500 else logger.warning
                log("stream ended by an error", exc_info=error if answer.status == 500 else None)
                await send({"type": "http.response.body", "body": frame(answer.body()), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
