"""Ranks, as threads, that reach each other over gloo; and what is said of those who do not come."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import pytest
import torch

from kvasir_protocol.errors import RankLost
from kvasir_workers.parallel.collectives import Collectives, Meeting
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.torch_groups import memory_store

T = TypeVar("T")
CPU = torch.device("cpu")


def on_all_ranks(tp: int, pp: int, act: Callable[[Collectives], T], deadline_s: float = 20.0) -> list[T]:
    """What each rank returns."""
    shape = GangShape(tensor_parallel_size=tp, pipeline_parallel_size=pp)
    meeting = Meeting(store=memory_store(), deadline_s=deadline_s, start_s=20.0)

    def run(rank: int) -> T:
        collectives = Collectives(RankPlace(shape, rank), meeting, CPU)
        collectives.muster("opened")  # who closes while another still opens its connections breaks them
        try:
            return act(collectives)
        finally:
            collectives.close()

    with ThreadPoolExecutor(shape.num_ranks) as pool:
        return list(pool.map(run, range(shape.num_ranks)))


def loss_beside_one_that_hangs(act: Callable[[Collectives], object], deadline_s: float) -> str:
    """What rank 0 says that it lost, while rank 1 does nothing but hold its connections open until then."""
    has_given_up = Event()

    def run(ranks: Collectives) -> str:
        if ranks.place.rank == 1:
            has_given_up.wait()
            return ""
        try:
            with pytest.raises(RankLost) as caught:
                act(ranks)
        finally:
            has_given_up.set()
        return str(caught.value)

    said, _ = on_all_ranks(2, 1, run, deadline_s)
    return said


def own(collectives: Collectives) -> torch.Tensor:
    return torch.full((2, 3), float(10**collectives.place.rank))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sum_is_of_the_stage(dtype: torch.dtype) -> None:
    sums = on_all_ranks(2, 2, lambda ranks: ranks.add_up(torch.full((3,), ranks.place.rank + 1, dtype=dtype)))
    assert [(total.dtype, total.tolist()) for total in sums] == [(dtype, [3.0] * 3)] * 2 + [(dtype, [7.0] * 3)] * 2


def test_first_rank_of_the_stage_spreads_what_it_has() -> None:
    found = on_all_ranks(2, 2, lambda ranks: ranks.spread(own(ranks))[0, 0].item())
    assert found == [1.0, 1.0, 100.0, 100.0]


def test_first_rank_of_the_stage_collects_what_all_have() -> None:
    found = on_all_ranks(3, 1, lambda ranks: [part[0, 0].item() for part in ranks.collect(own(ranks))])
    assert found == [[1.0, 10.0, 100.0], [], []]


def test_least_is_of_the_whole_gang() -> None:
    assert on_all_ranks(2, 2, lambda ranks: ranks.least(7 - ranks.place.rank)) == [4] * 4


def test_what_is_sent_arrives_in_order() -> None:
    def pass_round(ranks: Collectives) -> list[float]:
        received = []
        for index in range(5):
            ranks.send(own(ranks) + index, ranks.place.across(1))
            received.append(ranks.receive(torch.empty(2, 3), ranks.place.across(-1))[1, 2].item())
        ranks.muster("received")  # what is on its way is lost when the sender lets go
        return received

    assert on_all_ranks(1, 3, pass_round) == [
        [100.0 + i for i in range(5)], [1.0 + i for i in range(5)], [10.0 + i for i in range(5)]
    ]  # fmt: skip


def test_rank_alone_needs_nobody() -> None:
    (found,) = on_all_ranks(1, 1, lambda ranks: [ranks.add_up(own(ranks)), *ranks.collect(ranks.spread(own(ranks)))])
    assert all(torch.equal(tensor, torch.ones(2, 3)) for tensor in found)


def test_rank_that_died_is_named() -> None:
    def act(ranks: Collectives) -> RankLost | None:
        if ranks.place.rank == 1:
            return None
        with pytest.raises(RankLost) as caught:
            ranks.add_up(own(ranks))
        return caught.value

    lost, _ = on_all_ranks(2, 1, act)
    assert lost is not None
    assert lost.ranks == (1,)
    assert "in an all-reduce; rank 1 (pipeline stage 0, tensor rank 1) did not come" in str(lost)


@pytest.mark.parametrize(
    "operation",
    [
        lambda ranks: ranks.add_up(own(ranks)),
        lambda ranks: ranks.collect(own(ranks)),
        lambda ranks: ranks.least(1),
    ],
)
def test_rank_that_hangs_is_named_after_the_deadline(operation: Callable[[Collectives], object]) -> None:
    said = loss_beside_one_that_hangs(operation, deadline_s=1.0)
    assert "rank 1 (pipeline stage 0, tensor rank 1) did not come" in said


def test_peer_that_sends_nothing_is_named() -> None:
    def act(ranks: Collectives) -> RankLost | None:
        if ranks.place.rank == 1:
            return None
        with pytest.raises(RankLost, match="receiving from rank 1") as caught:
            ranks.receive(torch.empty(3), 1)
        return caught.value

    lost, _ = on_all_ranks(1, 2, act, deadline_s=1.0)
    assert lost is not None
    assert lost.ranks == (1,)


def test_gang_that_does_not_meet_says_who_is_missing() -> None:
    place = RankPlace(GangShape(tensor_parallel_size=2), 0)
    with pytest.raises(RankLost, match=r"rank 1 .* did not come"):
        Collectives(place, Meeting(store=memory_store(), start_s=0.1), CPU)


class Stuck:
    """A device that waits for another one."""

    def query(self) -> bool:
        return False


def test_rank_that_a_device_waits_for_is_named_after_the_deadline() -> None:
    said = loss_beside_one_that_hangs(lambda ranks: ranks.wait_for(Stuck()), deadline_s=0.2)
    assert "in a step on the device; rank 1 (pipeline stage 0, tensor rank 1) did not come" in said


def test_rank_that_a_step_on_the_device_waits_for_is_named_by_whoever_looks() -> None:
    def look_on(ranks: Collectives) -> None:
        ranks.watch(Stuck())
        while True:
            ranks.look()

    said = loss_beside_one_that_hangs(look_on, deadline_s=0.2)
    assert "in a step on the device; rank 1 (pipeline stage 0, tensor rank 1) did not come" in said


def test_nobody_is_missed_while_nothing_is_under_way() -> None:
    on_all_ranks(2, 1, lambda ranks: ranks.look(), deadline_s=0.2)


def test_all_hear_what_each_rank_of_the_gang_says() -> None:
    found = on_all_ranks(2, 2, lambda ranks: ranks.exchange("names", f"I am {ranks.place.rank}"))
    assert found == [[f"I am {rank}" for rank in range(4)]] * 4
