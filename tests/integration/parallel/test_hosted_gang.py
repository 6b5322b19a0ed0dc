"""Replicas whose other ranks were put somewhere by somebody else: here, into threads of this process."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import zmq

from kvasir_protocol.config import EngineConfig, HandoverConfig, ModelConfig, ReplicaConfig, TransportName
from kvasir_protocol.errors import RankLost
from kvasir_protocol.ids import ReplicaId, RequestId
from kvasir_protocol.messages import Hello, PageDoor
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.sockets import bind_server, connect_client, start_gatekeeper
from kvasir_protocol.view import Role
from kvasir_protocol.wire import encode
from kvasir_workers.kv.transfer.writer_life import HeldFile
from kvasir_workers.load import LeaderSeat, load_leader
from kvasir_workers.parallel.collectives import Meeting
from kvasir_workers.parallel.hosted_gang import GangAddress, HostedGang, PublicReceiver, PublicSender, name_of
from kvasir_workers.parallel.hosted_rank import HostedRank
from kvasir_workers.parallel.load_rank import load_rank, plan_rank, segment_name_of
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.torch_groups import memory_store
from kvasir_workers.replica import Replica
from tests.gangs import DEMO_MODEL, QueueSender
from tests.integration.engine.conftest import Model, run
from tests.mapped_segments import mapped_bytes
from tests.wire_client import WireClient, hand_over, token_ids

SECRET = b"s" * 32
SEGMENT_PREFIX = f"kvasir-hosted-{os.getpid()}"
PATIENCE_S = 20.0
NUM_PAGES = 5
PAGE_BYTES = 6 * 2 * 16 * 4 * 32 * 4
"""Of the demo model in float32: layers, key and value, tokens, heads, numbers of a head."""
DOOR = PageDoor(host="127.0.0.1", port=1, keys=b"k" * 32)


def asked(name: str = "r") -> GenerationRequest:
    return GenerationRequest(
        request_id=RequestId(name),
        prompt_token_ids=tuple(range(5, 70)),
        sampling=SamplingParams(max_tokens=8, seed=0, temperature=0, ignore_eos=True),
    )


class HostedReplica:
    """A replica and the ranks that follow it. is_far: they see no shared memory of each other, as on other hosts."""

    def __init__(self, role: Role, tp: int, pp: int, *, is_far: bool, transport: TransportName) -> None:
        config = ReplicaConfig(
            replica_id=ReplicaId(f"{role}-0"),
            role=role,
            model=ModelConfig(path=str(DEMO_MODEL), served_name="m"),
            engine=EngineConfig(
                device="cpu", kv_cache_bytes=8 * 2**20, num_threads=1, max_num_batched_tokens=32, max_num_seqs=4
            ),
            handover=HandoverConfig(transport=transport),
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
            segment_prefix=SEGMENT_PREFIX,
        )
        address: Future[str] = Future()

        def find() -> str:
            text = address.result()
            return text.replace(SEGMENT_PREFIX, f"{SEGMENT_PREFIX}-far") if is_far else text

        numbers = range(1, tp * pp)
        with ThreadPoolExecutor(max(1, len(numbers))) as pool:
            loading = [pool.submit(lambda n=number: HostedRank(config, SECRET, n, find())) for number in numbers]
            self.leader = Replica(config, SECRET, lambda name: HostedGang(config, SECRET, address.set_result, name))
            self.followers = [future.result() for future in loading]
        for rank in (*self.followers, self.leader):
            rank.start()
        self.client = WireClient(self.leader.endpoint, SECRET)

    def close(self) -> None:
        self.client.close()
        assert self.leader.stop()
        for follower in self.followers:
            follower.stop()


Start = Callable[..., HostedReplica]


@pytest.fixture
def start() -> Iterator[Start]:
    replicas: list[HostedReplica] = []

    def start(
        role: Role, tp: int = 1, pp: int = 1, *, is_far: bool = False, transport: TransportName = "auto"
    ) -> HostedReplica:
        replicas.append(HostedReplica(role, tp, pp, is_far=is_far, transport=transport))
        return replicas[-1]

    yield start
    for replica in replicas:
        replica.close()
    assert not list(Path("/dev/shm").glob(f"{SEGMENT_PREFIX}*"))


@pytest.fixture(scope="module")
def expected() -> list[int]:
    (answer,) = run(Model(DEMO_MODEL).engine(overlap=False), [asked()])
    return list(answer.token_ids)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_replica_answers_as_one_rank_does(start: Start, expected: list[int], tp: int, pp: int) -> None:
    replica = start("mixed", tp, pp)
    assert replica.client.generate(asked()) == expected
    assert (replica.leader.failure(), [rank.failure() for rank in replica.followers]) == (None, [None])


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1)])
def test_replica_is_seen_to_live_by_the_file_of_its_own_pages(start: Start, tp: int, pp: int) -> None:
    life = HeldFile.find(start("prefill", tp, pp).leader.held_file)
    assert life is not None and not life.has_ended()
    life.close()


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_ranks_at_rest_map_the_memory_of_all_their_pages(start: Start, tp: int, pp: int) -> None:
    start("mixed", tp, pp)
    segments = list(Path("/dev/shm").glob(f"{SEGMENT_PREFIX}*"))
    give_up_at = time.monotonic() + PATIENCE_S
    while not all(mapped_bytes(segment.name) >= segment.stat().st_size for segment in segments):
        assert time.monotonic() < give_up_at, [mapped_bytes(segment.name) for segment in segments]
    assert len(segments) == 2


NEAR, FAR = False, True


@pytest.mark.parametrize(
    ("prefill", "decode", "label"),
    [
        ((2, 1, NEAR), (1, 1, NEAR), "shared_memory"),
        ((1, 2, FAR), (1, 1, NEAR), "shared_memory"),
        ((1, 1, NEAR), (1, 2, FAR), "tcp"),
        ((2, 2, FAR), (1, 2, FAR), "tcp"),
        ((1, 2, FAR), (2, 1, NEAR), "shared_memory"),
    ],
    ids=lambda value: f"{value[0]}x{value[1]}{'-far' if value[2] else ''}" if isinstance(value, tuple) else value,
)
def test_pages_go_from_any_gang_to_any_wherever_its_ranks_are(
    start: Start, expected: list[int], prefill: tuple[int, int, bool], decode: tuple[int, int, bool], label: str
) -> None:
    source = start("prefill", prefill[0], prefill[1], is_far=prefill[2])
    target = start("decode", decode[0], decode[1], is_far=decode[2])
    assert_handed_over(source, target, expected, label)


def assert_handed_over(source: HostedReplica, target: HostedReplica, expected: list[int], label: str) -> None:
    first, rest = hand_over(asked(), source.client, target.client)
    assert token_ids(first) + token_ids(rest) == expected
    assert getattr(source.client.stats().stats.handover, f"pushed_bytes_{label}") == NUM_PAGES * PAGE_BYTES
    assert target.client.stats().stats.engine.computed_prompt_tokens == 0


@pytest.mark.parametrize("transport", ["shared-memory", "process-group", "tcp"])
@pytest.mark.parametrize(
    ("prefill", "decode"),
    [((1, 1), (2, 1)), ((2, 1), (1, 1)), ((2, 2), (1, 2)), ((1, 2), (2, 1))],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_pages_go_by_any_transport_between_gangs_that_share_the_model_differently(
    start: Start,
    expected: list[int],
    prefill: tuple[int, int],
    decode: tuple[int, int],
    transport: TransportName,
) -> None:
    source, target = (
        start(role, *ranks, transport=transport) for role, ranks in (("prefill", prefill), ("decode", decode))
    )
    assert_handed_over(source, target, expected, transport.replace("-", "_"))


@pytest.fixture
def plans() -> Iterator[tuple[object, str]]:
    """A leader's socket, and where followers connect to it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gatekeeper = start_gatekeeper(context, SECRET)
    yield bind_server(context, SECRET, "127.0.0.1", 0)
    gatekeeper.stop()
    context.destroy(linger=0)


def test_leader_learns_of_its_followers_doors_and_names_whoever_does_not_connect(plans: tuple[object, str]) -> None:
    socket, endpoint = plans
    receiver = PublicReceiver(address_of(endpoint, "gang"), SECRET, 1, DOOR, Event())
    assert PublicSender(socket, "gang", 2, start_s=PATIENCE_S).doors() == {1: DOOR}
    with pytest.raises(RankLost, match=r"ranks \(1, 2\) did not connect"):
        PublicSender(socket, "gang", 3, start_s=0.2).send(b"plan")
    receiver.close()


def address_of(plans: str, gang: str) -> GangAddress:
    return GangAddress(host="127.0.0.1", port=1, plans=plans, gang=gang, segment_name="")


@pytest.fixture
def stranger(plans: tuple[object, str]) -> Iterator[Callable[[bytes, bytes], None]]:
    """Somebody with the cluster's keys who connects under a name and says something."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets: list[Any] = []  # one that nobody holds is closed at once, and says nothing

    def say(name: bytes, words: bytes) -> None:
        sockets.append(connect_client(context, SECRET, plans[1], name))
        sockets[-1].send(words)

    yield say
    context.destroy(linger=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [(b"", encode(Hello(sender="router"))), (name_of("other", 1), encode(DOOR)), (name_of("gang", 2), b"junk")],
    ids=["a router that looks for another replica", "a follower of another gang", "junk"],
)
def test_whoever_is_no_follower_is_dropped_and_the_follower_is_met(
    plans: tuple[object, str], stranger: Callable[[bytes, bytes], None], name: bytes, words: bytes
) -> None:
    socket, endpoint = plans
    stranger(name, words)
    sender = PublicSender(socket, "gang", 2, start_s=PATIENCE_S)
    receiver = PublicReceiver(address_of(endpoint, "gang"), SECRET, 1, DOOR, Event())
    assert sender.doors() == {1: DOOR}
    receiver.close()


def test_follower_that_waits_for_a_plan_works_meanwhile_until_it_comes(plans: tuple[Any, str]) -> None:
    socket, endpoint = plans
    receiver = PublicReceiver(address_of(endpoint, "gang"), SECRET, 1, DOOR, Event())
    sender = PublicSender(socket, "gang", 2, start_s=PATIENCE_S)
    done: list[str] = []

    def work() -> bool:
        if not done:
            sender.send(b"at last")
        done.append("work")
        return True

    assert receiver.receive(idle_work=work) == b"at last"
    assert done
    receiver.close()


def test_follower_of_a_gang_that_was_here_before_hears_no_plan_of_this_one(plans: tuple[Any, str]) -> None:
    """Its leader has gone, and the system has given the address to another one."""
    socket, endpoint = plans
    old, new = (PublicReceiver(address_of(endpoint, gang), SECRET, 1, DOOR, Event()) for gang in ("old", "new"))
    PublicSender(socket, "new", 2, start_s=PATIENCE_S).send(b"plan")
    while not is_sent(socket, name_of("old", 1), b"word after the plan"):
        pass
    assert (old.receive(), new.receive()) == (b"word after the plan", b"plan")
    old.close()
    new.close()


def is_sent(socket: Any, name: bytes, frame: bytes) -> bool:
    """False as long as nobody of this name has connected."""
    try:
        socket.send_multipart([name, frame])
    except zmq.ZMQError:
        return False
    return True


Doors = Callable[[], dict[int, PageDoor]]


def no_door() -> dict[int, PageDoor]:
    raise RankLost("rank 1 opens no door", (1,))


def load_and_let_go(name: str, follower_name: str, doors: Doors) -> str:
    """Two ranks load, with these names for their pages, and are closed. What the leader fails with, if it does."""
    model, shape = ModelConfig(path=str(DEMO_MODEL), served_name="m"), GangShape(tensor_parallel_size=2)
    engine = EngineConfig(device="cpu", kv_cache_bytes=2**20, num_threads=1)
    meeting = Meeting(store=memory_store())

    def follow() -> None:
        rank = load_rank(plan_rank(model, engine, RankPlace(shape, 1)), meeting, segment_name_of(follower_name, 1))
        has_led.wait(PATIENCE_S)
        rank.stage.close()
        if rank.segment is not None:
            rank.segment.remove()

    has_led = Event()
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(follow)
        try:
            loaded = load_leader(model, engine, LeaderSeat(shape, meeting, QueueSender(range(1, 2)), name, doors))
            for part in loaded.parts:
                part.close()
            assert loaded.lead is not None
            loaded.lead.close()
        except RankLost as error:
            return str(error)
        finally:
            has_led.set()
            follower.result()
    return ""


@pytest.mark.parametrize(("follower_name", "failure"), [("", "rank 1 opens no door"), (f"{SEGMENT_PREFIX}-x", "")])
def test_leader_leaves_no_shared_memory_behind_whether_it_reached_all_ranks_or_not(
    follower_name: str, failure: str
) -> None:
    assert load_and_let_go(f"{SEGMENT_PREFIX}-x", follower_name, no_door) == failure
    gc.collect()
    assert not list(Path("/dev/shm").glob(f"{SEGMENT_PREFIX}*"))
    assert not [name for name in open_files() if SEGMENT_PREFIX in name]


def open_files() -> Iterator[str]:
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            yield os.readlink(descriptor)


def test_address_comes_out_of_its_text_as_it_went_in() -> None:
    address = GangAddress(host="10.0.0.1", port=7, plans="tcp://10.0.0.1:8", gang="a1", segment_name="pages")
    assert GangAddress.from_text(address.to_text()) == address
