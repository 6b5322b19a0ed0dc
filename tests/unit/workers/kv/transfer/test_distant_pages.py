"""A leader reads and writes pages that another process keeps: here, another thread."""

import dataclasses
import socket
from collections.abc import Callable, Iterator

import pytest
import torch

from kvasir_protocol.errors import RankLost
from kvasir_protocol.ids import Generation, PageIndex
from kvasir_protocol.messages import CancelPush, PageDoor
from kvasir_protocol.wire import encode
from kvasir_workers.kv.transfer.distant_pages import DistantPages
from kvasir_workers.kv.transfer.page_keeper import PageKeeper
from kvasir_workers.kv.transfer.page_link import LinkKeys, SealedLink

SHAPE = (2, 2, 6, 4, 2, 8)
PATIENCE_S = 20.0


def pages(*numbers: int) -> list[PageIndex]:
    return [PageIndex(number) for number in numbers]


@pytest.fixture
def memory() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def keeper(memory: torch.Tensor) -> Iterator[PageKeeper]:
    keeper = PageKeeper("127.0.0.1")
    keeper.keep(memory)
    yield keeper
    keeper.close()


Reach = Callable[..., DistantPages]


@pytest.fixture
def reach(keeper: PageKeeper) -> Iterator[Reach]:
    reached: list[DistantPages] = []

    def reach(**changes: object) -> DistantPages:
        door = dataclasses.replace(keeper.door, **changes)  # type: ignore[arg-type]
        reached.append(DistantPages.reach(1, door, SHAPE, torch.float32, PATIENCE_S))
        return reached[-1]

    yield reach
    for distant in reached:
        distant.close()


def test_leader_reads_pages_in_the_order_that_it_asks_for(reach: Reach, memory: torch.Tensor) -> None:
    torch.testing.assert_close(reach().read(pages(4, 1)), memory[:, :, [4, 1]], rtol=0, atol=0)


def test_what_the_leader_writes_is_there_when_it_returns_and_nothing_else_is_changed(
    reach: Reach, memory: torch.Tensor
) -> None:
    before, content = memory.clone(), torch.randn(2, 2, 2, 4, 2, 8, generator=torch.Generator().manual_seed(1))
    reach().write(content, pages(5, 0))
    torch.testing.assert_close(memory[:, :, [5, 0]], content, rtol=0, atol=0)
    torch.testing.assert_close(memory[:, :, 1:5], before[:, :, 1:5], rtol=0, atol=0)


def test_stranger_is_turned_away_and_the_leader_comes_in_after_it(reach: Reach, keeper: PageKeeper) -> None:
    with pytest.raises(RankLost, match="the pages of rank 1 can't be reached") as caught:
        reach(keys=LinkKeys.fresh().to_bytes())
    assert caught.value.ranks == (1,)
    assert reach().read(pages(0)).shape == (2, 2, 1, 4, 2, 8)


def test_pages_that_are_not_there_end_the_link(reach: Reach, memory: torch.Tensor) -> None:
    distant, before = reach(), memory.clone()
    with pytest.raises(RankLost):
        distant.write(torch.zeros(2, 2, 1, 4, 2, 8), pages(6))
    torch.testing.assert_close(memory, before, rtol=0, atol=0)


def test_content_of_another_size_is_not_written(reach: Reach, memory: torch.Tensor) -> None:
    distant, before = reach(), memory.clone()
    with pytest.raises(RankLost):
        distant.write(torch.zeros(2, 2, 2, 4, 1, 8), pages(0, 1))
    torch.testing.assert_close(memory, before, rtol=0, atol=0)


def test_keeper_that_has_gone_is_told_from_then_on_without_asking(reach: Reach, keeper: PageKeeper) -> None:
    distant = reach()
    assert distant.failure() is None
    keeper.close()
    for _ in range(2):
        with pytest.raises(RankLost, match="the pages of rank 1 can't be reached"):
            distant.read(pages(0))
    assert distant.failure() is not None


def test_nobody_at_the_door_is_told_with_the_rank() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    door = PageDoor(host="127.0.0.1", port=port, keys=b"k" * 32)
    with pytest.raises(RankLost, match="the pages of rank 3 can't be reached") as caught:
        DistantPages.reach(3, door, SHAPE, torch.float32, PATIENCE_S)
    assert caught.value.ranks == (3,)


def test_who_knows_the_keys_and_asks_for_anything_but_pages_ends_the_keeper(keeper: PageKeeper, reach: Reach) -> None:
    keys = LinkKeys.from_bytes(keeper.door.keys)
    with socket.create_connection((keeper.door.host, keeper.door.port), PATIENCE_S) as connection:
        link = SealedLink(connection, keys.asks, keys.answers)
        link.send(encode(CancelPush(generation=Generation(1))), memoryview(b""))
        with pytest.raises(ConnectionResetError):
            link.receive()
    with pytest.raises(RankLost):
        reach()


def test_keeper_ends_though_a_stranger_is_in_the_middle_of_a_word(keeper: PageKeeper) -> None:
    with socket.create_connection((keeper.door.host, keeper.door.port), PATIENCE_S) as stranger:
        stranger.sendall(b"half")
        keeper.close()


def test_keeper_ends_though_nobody_came(memory: torch.Tensor) -> None:
    keeper = PageKeeper("127.0.0.1")
    keeper.keep(memory)
    keeper.close()
    keeper.close()
