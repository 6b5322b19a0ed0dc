import dataclasses

import pytest

from kvasir_protocol.messages import Submit
from kvasir_protocol.view import ClusterView
from tests.fakes.replica import FakeReplica
from tests.fakes.requests import make_request
from tests.fakes.serving import SECRET, dispatching, listening, running_fleet, until_live, view_of

pytestmark = pytest.mark.anyio


def fake(name: str, **options: int) -> FakeReplica:
    return FakeReplica(name, "mixed", SECRET, answer=range(100, 120), **options)


async def test_phase_is_starting_before_the_first_view() -> None:
    async with running_fleet() as fleet:
        assert fleet.view.phase == "starting"


async def test_fleet_begins_until_its_first_link_is_up() -> None:
    replica = fake("mixed-0")
    async with listening([replica]), running_fleet() as fleet:
        assert fleet.is_beginning
        fleet.apply(view_of(replica))
        assert fleet.is_beginning
        await until_live(fleet, 1)
        assert not fleet.is_beginning
        await replica.stop()
        await until_live(fleet, 0)
        assert not fleet.is_beginning


async def test_fleet_whose_replicas_still_load_does_not_begin_yet() -> None:
    async with running_fleet() as fleet:
        fleet.apply(ClusterView(version=1, replicas=(), phase="loading"))
        assert not fleet.is_beginning


async def test_newcomers_are_linked_and_leavers_let_go() -> None:
    first, second = fake("mixed-0"), fake("mixed-1")
    async with listening([first, second]), running_fleet() as fleet:
        fleet.apply(view_of(first))
        await until_live(fleet, 1)
        fleet.apply(view_of(second, version=2))
        assert [link.replica_id for link in fleet.links] == ["mixed-1"]
        await until_live(fleet, 1)


async def test_replica_that_stays_keeps_its_link() -> None:
    first, second = fake("mixed-0"), fake("mixed-1")
    async with listening([first, second]), running_fleet() as fleet:
        fleet.apply(view_of(first))
        link = fleet.link(first.replica_id)
        fleet.apply(view_of(first, second, version=2))
        assert fleet.link(first.replica_id) is link


async def test_replica_of_a_new_role_keeps_its_link_and_its_streams() -> None:
    replica = fake("mixed-0")
    replica.faults.pause_at = 2
    async with dispatching(replica) as running:
        stream = running.dispatcher.stream(make_request(max_tokens=4))
        tokens = list((await anext(stream)).token_ids)
        link = running.fleet.link(replica.replica_id)
        (address,) = view_of(replica).replicas
        running.fleet.apply(ClusterView(version=2, replicas=(dataclasses.replace(address, role="prefill"),)))
        assert [load.role for load in running.fleet.loads()] == ["prefill"]
        assert running.fleet.link(replica.replica_id) is link
        replica.faults.resumed.set()
        async for output in stream:
            tokens += output.token_ids
        assert tokens == [100, 101, 102, 103]
        assert len(replica.got(Submit)) == 1


async def test_replica_that_moved_gets_a_new_link() -> None:
    replica = fake("mixed-0")
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        link = fleet.link(replica.replica_id)
        moved = dataclasses.replace(link.address, endpoint="tcp://127.0.0.1:9")
        fleet.apply(ClusterView(version=2, replicas=(moved,)))
        assert fleet.link(replica.replica_id) is not link


async def test_context_is_the_smallest_of_the_living() -> None:
    replicas = [fake("mixed-0", max_sequence_tokens=500), fake("mixed-1", max_sequence_tokens=300)]
    async with listening(replicas), running_fleet() as fleet:
        assert fleet.context_tokens() is None
        fleet.apply(view_of(*replicas))
        await until_live(fleet, 2)
        assert fleet.context_tokens() == 300
        await replicas[1].stop()
        await until_live(fleet, 1)
        assert fleet.context_tokens() == 500


async def test_stream_on_a_replica_that_leaves_the_view_is_finished_there() -> None:
    replica = fake("mixed-0")
    replica.faults.pause_at = 2
    async with dispatching(replica) as running:
        stream = running.dispatcher.stream(make_request(max_tokens=4))
        tokens = [*(await anext(stream)).token_ids, *(await anext(stream)).token_ids]
        running.fleet.apply(ClusterView(version=2, replicas=()))
        replica.faults.resumed.set()
        async for output in stream:
            tokens += output.token_ids
        assert tokens == [100, 101, 102, 103]
        assert len(replica.got(Submit)) == 1
