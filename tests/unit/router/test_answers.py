import asyncio
from collections.abc import AsyncGenerator

import pytest

from kvasir_router.answers import merge

pytestmark = pytest.mark.anyio


class Source:
    """A stream of its items; then it fails, or waits for ever if asked to."""

    def __init__(self, *items: int, error: Exception | None = None, hangs: bool = False) -> None:
        self._items = items
        self._error = error
        self._hangs = hangs
        self.is_closed = False

    async def stream(self) -> AsyncGenerator[int, None]:
        try:
            for item in self._items:
                yield item
            if self._error is not None:
                raise self._error
            if self._hangs:
                await asyncio.Event().wait()
        finally:
            self.is_closed = True


@pytest.mark.parametrize("num_sources", [1, 3])
async def test_items_of_all_streams_come_once(num_sources: int) -> None:
    sources = [Source(number, number + 10) for number in range(num_sources)]
    found = [item async for item in merge([source.stream() for source in sources])]
    assert sorted(found) == sorted([*range(num_sources), *range(10, 10 + num_sources)])


@pytest.mark.parametrize("num_others", [0, 2])
async def test_error_of_one_stream_ends_and_closes_all(num_others: int) -> None:
    failing, others = Source(1, error=ValueError("no")), [Source(2, hangs=True) for _ in range(num_others)]
    with pytest.raises(ValueError, match="no"):
        async for _ in merge([source.stream() for source in (failing, *others)]):
            pass
    assert all(source.is_closed for source in (failing, *others))


@pytest.mark.parametrize("num_sources", [1, 3])
async def test_closing_closes_every_stream(num_sources: int) -> None:
    sources = [Source(1, hangs=True) for _ in range(num_sources)]
    merged = merge([source.stream() for source in sources])
    for _ in sources:
        await anext(merged)
    await merged.aclose()
    assert all(source.is_closed for source in sources)
