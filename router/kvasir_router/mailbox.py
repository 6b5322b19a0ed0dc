"""Where the words of several senders wait for the one that reads them."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Items in the order of arrival, for one reader of the same event loop.

    Every token of every stream passes through one: a queue's get within asyncio.timeout takes twice as long.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: T) -> None:
        self._items.append(item)
        self._wake()

    async def get(self, timeout_s: float) -> T:
        """The next item. Raises TimeoutError if none comes in time."""
        if not self._items:
            await self._wait(timeout_s)
        if not self._items:
            raise TimeoutError
        return self._items.popleft()

    async def _wait(self, timeout_s: float) -> None:
        assert self._waiter is None, "a mailbox has one reader"
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
