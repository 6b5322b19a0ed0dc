"""A server that answers at once with canned tokens: what a client reaches against it is the client's own ceiling.

python -m kvasir.bench.stub_server [PORT]     prints its URL, serves until its standard input closes
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"

Send = Callable[[bytes], None]

Answer = Callable[[dict[str, Any]], AsyncIterator[bytes]]
"""From a request's body to the bytes of the whole HTTP answer, in pieces."""


def http_chunk(body: bytes) -> bytes:
    """In the chunked transfer encoding."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def event(data: dict[str, Any]) -> bytes:
    return http_chunk(b"data: " + json.dumps(data).encode() + b"\n\n")


DONE = http_chunk(b"data: [DONE]\n\n") + END


def _chunk(choice: dict[str, Any]) -> bytes:
    head = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1750000000, "model": "stub"}
    return event({**head, "choices": [{"index": 0, "logprobs": None, "finish_reason": None, **choice}]})


TEXT_TOKEN = _chunk({"text": " word"})
CHAT_TOKEN = _chunk({"delta": {"content": " word"}})


async def canned(body: dict[str, Any]) -> AsyncIterator[bytes]:
    """As many tokens as are asked for, each on its way by itself, then a finish reason and the usage."""
    is_chat = "messages" in body
    num_tokens = int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)
    yield HEAD
    for _ in range(num_tokens):
        yield CHAT_TOKEN if is_chat else TEXT_TOKEN
    finish: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
    usage = {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": 1 + num_tokens}
    yield _chunk({**finish, "finish_reason": "length"}) + event({"choices": [], "usage": usage}) + DONE


@contextlib.asynccontextmanager
async def stub_server(answer: Answer = canned, port: int = 0) -> AsyncIterator[str]:
    """Its URL on the loopback interface; port 0 is a free one. `answer` raises ConnectionError to close."""

    running: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(task := asyncio.create_task(_handle(answer, reader, writer)))
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _handle(answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            async for piece in answer(await _read_body(reader)):
                writer.write(piece)
                await asyncio.sleep(0)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _read_body(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, length = head.partition(b"content-length:")
    body = await reader.readexactly(int(length.partition(b"\r\n")[0] or 0))
    parsed: dict[str, Any] = json.loads(body) if body else {}
    return parsed


async def _serve_until_closed(port: int) -> None:
    async with stub_server(port=port) as url:
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve_until_closed(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
