"""Who did not come: told by those who did, with the clock turned by hand."""

import pytest

from kvasir_protocol.errors import RankLost
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.roll_call import RollCall
from kvasir_workers.parallel.torch_groups import memory_store

SHAPE = GangShape(tensor_parallel_size=2, pipeline_parallel_size=2)


class World:
    """Time passes when somebody pauses; others sign at their own time."""

    def __init__(self) -> None:
        self.store = memory_store()
        self.now = 0.0
        self.signatures: list[tuple[float, str]] = []

    def pause(self, seconds: float) -> None:
        self.now += seconds
        for at, name in self.signatures:
            if at <= self.now:
                self.store.set(name, "here")

    def roll_call(self, rank: int, deadline_s: float = 8.0) -> RollCall:
        return RollCall(self.store, RankPlace(SHAPE, rank), deadline_s, lambda: self.now, self.pause)


def test_those_who_did_not_sign_are_named() -> None:
    world = World()
    world.signatures = [(0.5, "failed/1")]
    lost = world.roll_call(0).explain("an all-reduce", 8.0, (), "Timed out\nmore")
    assert lost.ranks == (2, 3)
    assert str(lost) == (
        "rank 0 (pipeline stage 0, tensor rank 0) waited 8.0 s in an all-reduce; "
        "rank 2 (pipeline stage 1, tensor rank 0), rank 3 (pipeline stage 1, tensor rank 1) did not come"
    )


def test_after_a_deadline_the_others_have_a_share_of_it_to_sign() -> None:
    world = World()
    world.signatures = [(1.9, "failed/1"), (2.1, "failed/2")]
    assert world.roll_call(0).explain("a gather", 8.0, (), "").ranks == (2, 3)


def test_after_a_broken_connection_a_second_is_enough_and_the_cause_is_told() -> None:
    world = World()
    world.signatures = [(0.9, "failed/0"), (0.9, "failed/3"), (1.1, "failed/2")]
    lost = world.roll_call(1).explain("a gather", 0.1, (), "Connection closed by peer\nmore")
    assert lost.ranks == (2,)
    assert world.now < 1.1
    assert str(lost).endswith("did not come (Connection closed by peer)")


def test_if_all_are_there_the_cause_is_all_that_is_said() -> None:
    world = World()
    world.signatures = [(0.1, f"failed/{rank}") for rank in (1, 2, 3)]
    lost = world.roll_call(0).explain("a gather", 0.1, (), "shapes differ")
    assert (lost.ranks, str(lost).endswith("all ranks are there, but: shapes differ")) == ((), True)


def test_without_the_list_the_peer_is_named() -> None:
    class GoneStore:
        def set(self, key: str, value: str) -> None:
            raise ConnectionError("gone")

    lost = RollCall(GoneStore(), RankPlace(SHAPE, 3), 8.0).explain("receiving from rank 1", 0.1, (1,), "closed")  # type: ignore[arg-type]
    assert lost.ranks == (1,)


def test_muster_ends_when_the_last_has_come() -> None:
    world = World()
    world.signatures = [(5.0, "met/1"), (6.0, "met/2"), (7.0, "met/3")]
    world.roll_call(0).muster("met", 100.0)
    assert 7.0 <= world.now < 7.1


def test_muster_names_who_has_not_come() -> None:
    world = World()
    world.signatures = [(5.0, "met/1"), (6.0, "met/2")]
    with pytest.raises(RankLost, match=r"waited 9 s for all ranks to have met; rank 3 .* did not come") as caught:
        world.roll_call(0).muster("met", 9.0)
    assert caught.value.ranks == (3,)


def test_muster_is_left_as_soon_as_it_is_in_vain() -> None:
    world = World()
    with pytest.raises(RankLost, match="process 7 ended; rank 1"):
        world.roll_call(0).muster("met", 100.0, lambda: "process 7 ended" if world.now > 3 else None)
    assert world.now < 3.1


def test_list_of_a_gang_that_is_abandoned_is_not_asked_for() -> None:
    class GoneStore:
        def set(self, key: str, value: str) -> None:
            raise AssertionError("torch's would look for its file for minutes")

    roll_call = RollCall(GoneStore(), RankPlace(SHAPE, 3), 8.0)  # type: ignore[arg-type]
    with pytest.raises(RankLost, match="the leader is gone; rank 0"):
        roll_call.muster("loaded", 100.0, lambda: "the leader is gone")


def test_gang_of_one_waits_for_nobody() -> None:
    RollCall(memory_store(), RankPlace(GangShape(), 0), 8.0).muster("met", 0.0)
