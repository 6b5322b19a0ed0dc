import asyncio

import pytest

from kvasir_router.mailbox import Mailbox

pytestmark = pytest.mark.anyio

LONG_S = 60.0


async def test_items_come_in_the_order_in_which_they_were_put() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    mailbox.put(2)
    assert [await mailbox.get(LONG_S), await mailbox.get(LONG_S)] == [1, 2]


async def test_a_reader_that_waits_gets_what_comes() -> None:
    mailbox: Mailbox[int] = Mailbox()
    reading = asyncio.create_task(mailbox.get(LONG_S))
    await asyncio.sleep(0)
    mailbox.put(1)
    mailbox.put(2)
    assert (await reading, await mailbox.get(LONG_S)) == (1, 2)


async def test_a_reader_to_whom_nothing_comes_is_told_and_may_ask_again() -> None:
    mailbox: Mailbox[int] = Mailbox()
    with pytest.raises(TimeoutError):
        await mailbox.get(0.0)
    mailbox.put(1)
    assert await mailbox.get(0.0) == 1


async def test_a_reader_that_is_cancelled_takes_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox()
    reading = asyncio.create_task(mailbox.get(LONG_S))
    await asyncio.sleep(0)
    reading.cancel()
    mailbox.put(1)
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await mailbox.get(LONG_S) == 1
