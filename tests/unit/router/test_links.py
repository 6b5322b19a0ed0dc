import asyncio
from dataclasses import replace

import pytest

from kvasir_protocol.ids import ReplicaId, RequestId
from kvasir_protocol.messages import Hello, Ping, Submit
from kvasir_router.links import MAX_UNANSWERED_PINGS, Arrival, Arrivals, LinkLost
from kvasir_router.mailbox import Mailbox
from tests.fakes.replica import DEADLINE_S, FakeReplica
from tests.fakes.requests import make_request
from tests.fakes.serving import SECRET, listening, running_fleet, until_live, view_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def replica() -> FakeReplica:
    return FakeReplica("mixed-0", "mixed", SECRET, answer=[100, 101, 102])


async def test_greeted_replica_is_up_and_tells_of_itself(replica: FakeReplica) -> None:
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        link = fleet.link(replica.replica_id)
        assert not link.is_up
        await until_live(fleet, 1)
        assert link.info is not None
        assert link.info.max_sequence_tokens == 1000
        assert replica.got(Hello)[0].sender == "router-test"


async def test_pings_bring_stats(replica: FakeReplica) -> None:
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        link = fleet.link(replica.replica_id)
        async with asyncio.timeout(DEADLINE_S):
            while link.stats is None:
                await asyncio.sleep(0.005)
        assert link.stats.num_pages == 100


async def test_outputs_of_a_message_reach_their_streams(replica: FakeReplica) -> None:
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        await until_live(fleet, 1)
        mailbox: Arrivals = Mailbox()
        link = fleet.link(replica.replica_id)
        request = make_request(max_tokens=1)
        link.attach(request.request_id, mailbox)
        link.send(Submit(request=request))
        replica_id, output = await mailbox.get(DEADLINE_S)
        assert replica_id == replica.replica_id
        assert output.token_ids == (100,)  # type: ignore[union-attr]


async def test_closed_connection_tells_its_streams_at_once(replica: FakeReplica) -> None:
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        await until_live(fleet, 1)
        mailbox: Arrivals = Mailbox()
        link = fleet.link(replica.replica_id)
        link.attach(make_request().request_id, mailbox)
        await replica.stop()
        _, arrival = await mailbox.get(1.0)
        assert arrival == LinkLost("the replica closed the connection")
        assert not link.is_up


async def test_replica_that_answers_no_pings_is_down(replica: FakeReplica) -> None:
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        await until_live(fleet, 1)
        mailbox: Arrivals = Mailbox()
        fleet.link(replica.replica_id).attach(make_request().request_id, mailbox)
        replica.faults.ignores_pings = True
        _, arrival = await mailbox.get(DEADLINE_S)
        assert arrival == LinkLost("the replica left 6 pings unanswered")


async def test_replica_that_comes_back_is_up_again(replica: FakeReplica) -> None:
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        await until_live(fleet, 1)
        await replica.stop()
        await until_live(fleet, 0)
        await replica.start()
        await until_live(fleet, 1)


async def test_nothing_queued_for_a_lost_replica_reaches_its_successor(replica: FakeReplica) -> None:
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        await until_live(fleet, 1)
        await replica.stop()
        await until_live(fleet, 0)
        fleet.link(replica.replica_id).send(Submit(request=make_request()))
        await replica.start()
        await until_live(fleet, 1)
        assert replica.got(Submit) == []


async def test_nothing_is_said_to_a_replica_that_has_not_greeted_back(replica: FakeReplica) -> None:
    """Its streams were told that it is down: what it computed nobody would hear, and nobody would abort."""
    replica.faults.ignores_hello = True
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        await replica.until(lambda replica: bool(replica.got(Hello)))
        fleet.link(replica.replica_id).send(Submit(request=make_request()))
        num_sent_before = len(replica.got(Ping)) + MAX_UNANSWERED_PINGS
        await replica.until(lambda replica: len(replica.got(Ping)) > num_sent_before)
        assert replica.got(Submit) == []


async def test_stream_attached_to_a_lost_replica_is_told_at_once(replica: FakeReplica) -> None:
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        mailbox: Arrivals = Mailbox()
        fleet.link(replica.replica_id).attach(make_request().request_id, mailbox)
        assert await mailbox.get(0.0) == (replica.replica_id, LinkLost("is not connected"))


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x81\xa1v\x01"])
async def test_bad_frames_are_counted_and_harm_nothing(replica: FakeReplica, frame: bytes) -> None:
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        await until_live(fleet, 1)
        link = fleet.link(replica.replica_id)
        await replica.send_raw(frame)
        async with asyncio.timeout(DEADLINE_S):
            while not link.num_bad_frames:
                await asyncio.sleep(0.005)
        assert link.is_up


class BrokenMailbox(Mailbox[tuple[ReplicaId, Arrival]]):
    """Takes nothing but the word that a link is lost."""

    def put(self, item: tuple[ReplicaId, Arrival]) -> None:
        if not isinstance(item[1], LinkLost):
            raise RuntimeError("broken")
        super().put(item)


async def test_message_that_cannot_be_delivered_is_told_with_its_trace_and_harms_nothing_else(
    replica: FakeReplica, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening([replica]), running_fleet() as fleet:
        fleet.apply(view_of(replica))
        await until_live(fleet, 1)
        link = fleet.link(replica.replica_id)
        broken, sound = (
            replace(make_request(max_tokens=1), request_id=RequestId(name)) for name in ("broken", "sound")
        )
        mailbox: Arrivals = Mailbox()
        link.attach(broken.request_id, BrokenMailbox())
        link.attach(sound.request_id, mailbox)
        for request in (broken, sound):
            link.send(Submit(request=request))
        _, output = await mailbox.get(DEADLINE_S)
        assert output.token_ids == (100,)  # type: ignore[union-attr]
        assert link.is_up
        assert link.num_bad_frames == 1
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == f"{replica.replica_id}: message dropped"


async def test_router_with_another_secret_is_not_let_in(replica: FakeReplica, caplog: pytest.LogCaptureFixture) -> None:
    async with listening([replica]), running_fleet(secret=b"another secret that nobody knows.") as fleet:
        fleet.apply(view_of(replica))
        async with asyncio.timeout(DEADLINE_S):
            while "closed the connection" not in caplog.text and "refuses our key" not in caplog.text:
                await asyncio.sleep(0.005)
        assert fleet.live() == []
