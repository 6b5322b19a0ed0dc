"""The pieces of a stream, and of several streams in one sequence."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from kvasir_protocol.request import GenerationRequest
from kvasir_router.dispatch import Dispatcher
from kvasir_router.metrics import StreamTimes
from kvasir_router.pieces import Piece, PieceReader
from kvasir_router.tokenise import TextCodec

T = TypeVar("T")


async def pieces(
    request: GenerationRequest, choice_index: int, dispatcher: Dispatcher, codec: TextCodec, started_at: float
) -> AsyncGenerator[Piece, None]:
    """All pieces of one choice; closing the generator aborts the stream."""
    reader = PieceReader(request, choice_index, codec)
    times = StreamTimes(dispatcher.metrics, started_at, len(request.prompt_token_ids))
    async with aclosing(dispatcher.stream(request)) as outputs:
        async for output in outputs:
            piece = reader.read(output)
            times.saw_tokens(len(piece.token_ids), time.monotonic())
            if piece.finish_reason is not None:
                times.finished(piece.finish_reason, time.monotonic())
            yield piece
            if piece.finish_reason is not None:
                return


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Items of all streams as they come. An error of one ends all; closing this closes all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield item
        return
    queue: asyncio.Queue[T | _Ended] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
    try:
        num_running = len(tasks)
        while num_running:
            event = await queue.get()
            if not isinstance(event, _Ended):
                yield event
                continue
            if event.error is not None:
                raise event.error
            num_running -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Ended:
    error: Exception | None


async def _pump(stream: AsyncGenerator[T, None], queue: asyncio.Queue[T | _Ended]) -> None:
    error = None
    try:
        async with aclosing(stream) as items:
            async for item in items:
                queue.put_nowait(item)
    except Exception as caught:
        error = caught  # raised again by the reader of the queue
    queue.put_nowait(_Ended(error))
