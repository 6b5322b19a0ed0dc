"""A replica's data plane over a fake model: what it answers, and what it survives."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import zmq

from kvasir_protocol.events import HandoverCounters, TokenOutput
from kvasir_protocol.ids import Generation, PageIndex, ReplicaId, RequestId
from kvasir_protocol.messages import (
    Abort,
    BeginPush,
    Commit,
    GetView,
    HandoverFailed,
    HandoverTicket,
    Hello,
    PushGranted,
    PushPages,
    Rejected,
    Reserve,
    Reserved,
    ReserveRefused,
    Submit,
    Welcome,
)
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.sockets import bind_server, start_gatekeeper
from kvasir_protocol.view import ReplicaInfo
from kvasir_protocol.wire import MAX_MESSAGE_BYTES
from kvasir_workers.engine import Engine
from kvasir_workers.kv.transfer.departures import Departures
from kvasir_workers.kv.transfer.page_intake import listen_for_pages
from kvasir_workers.kv.transfer.page_parts import PartedPages
from kvasir_workers.kv.transfer.page_stream import LENGTHS
from kvasir_workers.replica_server import Binding, ReplicaServer
from tests.unit.workers.engine_house import House, greedy
from tests.unit.workers.fakes import VOCAB_SIZE, RecordingPush, expected_answer, make_request
from tests.unit.workers.kv.transfer.layouts import make_layout, page_shape
from tests.wire_client import PageClient, WireClient, clients

SECRET = b"s" * 32
NUM_PAGES = 12
INFO = ReplicaInfo(
    replica_id=ReplicaId("mixed-0"),
    role="mixed",
    model="fake",
    vocab_size=VOCAB_SIZE,
    max_sequence_tokens=NUM_PAGES * 4,
    page_size=4,
    num_pages=NUM_PAGES,
    process_id=1,
    host="here",
)


class FakeReplica:
    """The server and the engine's loop are real, the model is not."""

    def __init__(self, *, hands_over: bool = True, **settings: object) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.gatekeeper = start_gatekeeper(self.context, SECRET)
        socket, self.endpoint = bind_server(self.context, SECRET, "127.0.0.1", 0)
        self.house = House(num_pages=NUM_PAGES, max_num_seqs=4, **settings)  # type: ignore[arg-type]
        pages = torch.zeros(page_shape(NUM_PAGES))
        page_listener, page_endpoint = listen_for_pages("127.0.0.1")
        binding = Binding(
            context=self.context,
            socket=socket,
            endpoint=self.endpoint,
            page_listener=page_listener,
            page_endpoint=page_endpoint,
            segments=(),
        )
        parted = PartedPages.whole(make_layout(), pages)
        departures = Departures(RecordingPush(), lambda pages: None, time.monotonic)
        self.server = ReplicaServer(binding, INFO, self.house.engine, parted, departures, hands_over=hands_over)
        self.server.start(HandoverCounters)

    def close(self) -> None:
        self.server.stop()
        self.gatekeeper.stop()
        self.context.destroy(linger=0)


@pytest.fixture
def replica() -> Iterator[FakeReplica]:
    with closing(FakeReplica()) as made:
        yield made
        assert made.server.is_alive
        assert made.server.loop.failure() is None


Connect = Callable[[], WireClient]


@pytest.fixture
def connect(replica: FakeReplica) -> Iterator[Connect]:
    with clients(SECRET) as connect:
        yield lambda: connect(replica.endpoint)


def request(name: str = "r", num_tokens: int = 10, **sampling: object) -> GenerationRequest:
    return make_request(name, [i % 7 for i in range(num_tokens)], sampling=greedy(**sampling))


def assert_still_serving(client: WireClient) -> None:
    probe = request("probe", num_tokens=3)
    assert client.generate(probe) == expected_answer(probe)[0]


def test_hello_is_answered_with_what_the_replica_is(connect: Connect) -> None:
    client = connect()
    client.send(Hello(sender="router"))
    assert client.expect(Welcome).info == INFO


def test_submitted_request_is_answered(connect: Connect) -> None:
    assert connect().generate(request()) == expected_answer(request())[0]


def test_stats_count_what_was_done(connect: Connect) -> None:
    client = connect()
    client.generate(request())
    stats = client.stats().stats
    assert (stats.engine.finished_length, stats.engine.generated_tokens, stats.num_pages) == (1, 6, NUM_PAGES)
    assert stats.resident_bytes > 0


@pytest.mark.parametrize(
    "sampling", [{"max_tokens": None}, {"seed": None}, {"stop_token_ids": (99,)}, {"max_tokens": 1000}]
)
@pytest.mark.parametrize("kind", [Submit, Reserve])
def test_request_that_cannot_be_is_rejected_and_harms_nobody(
    connect: Connect, kind: type, sampling: dict[str, object]
) -> None:
    client, item = connect(), request(**sampling)
    client.send(Submit(request=item) if kind is Submit else Reserve(request=item, deadline_s=5))
    rejected = client.expect(Rejected)
    assert (rejected.request_id, rejected.is_invalid) == ("r", True)
    assert_still_serving(client)


def test_full_line_is_answered_at_once_with_the_numbers() -> None:
    with closing(FakeReplica(max_waiting_tokens=1)) as replica, closing(WireClient(replica.endpoint, SECRET)) as client:
        client.send(Reserve(request=request("promised", num_tokens=40), deadline_s=5))
        client.expect(Reserved)
        client.send(Submit(request=request("waits")))
        client.send(Submit(request=request("refused")))
        rejected = client.expect(Rejected)
        assert (rejected.request_id, rejected.is_invalid) == ("refused", False)
        assert "10 tokens wait here already and the request has 10; at most 1 may wait" in rejected.message
        assert client.stats().stats.engine.refused_requests == 1


def test_overdue_request_is_rejected_as_nobodys_mistake(replica: FakeReplica, connect: Connect) -> None:
    client = connect()
    client.send(Reserve(request=request("promised", num_tokens=40), deadline_s=5))
    client.expect(Reserved)
    late = make_request("late", [1] * 10, deadline_s=3.0)
    client.send(Submit(request=late))
    while not client.stats().stats.num_waiting:
        pass
    replica.house.clock.now = 3.0
    rejected = client.expect(Rejected)
    assert (rejected.request_id, rejected.is_invalid) == ("late", False)
    assert rejected.message.startswith("no turn came within the deadline of 3 s")
    assert_still_serving(client)


def test_request_id_in_use_is_rejected(connect: Connect) -> None:
    client = connect()
    client.send(Reserve(request=request(), deadline_s=5))
    client.send(Submit(request=request()))
    assert client.expect(Rejected).field == "request_id"


def test_message_of_no_use_is_dropped(connect: Connect) -> None:
    client = connect()
    client.send(GetView())
    assert_still_serving(client)


def test_abort_of_another_router_is_ignored(connect: Connect) -> None:
    owner, other = connect(), connect()
    owner.send(Reserve(request=request(), deadline_s=5))
    owner.expect(Reserved)
    other.send(Abort(request_id=RequestId("r")))
    assert other.stats().stats.num_used_pages == 3


def test_reservation_is_refused_when_pages_are_short(connect: Connect) -> None:
    client = connect()
    client.send(Reserve(request=request("a", num_tokens=40), deadline_s=5))
    client.expect(Reserved)
    client.send(Reserve(request=make_request("b", [1] * 20), deadline_s=5))
    assert "2 pages are free, the request needs 5" in client.expect(ReserveRefused).reason
    assert_still_serving(client)


def test_replica_that_hands_no_pages_over_refuses_that_and_nothing_else() -> None:
    with closing(FakeReplica(hands_over=False)) as replica, closing(WireClient(replica.endpoint, SECRET)) as client:
        client.send(Reserve(request=request(), deadline_s=5))
        assert client.expect(ReserveRefused).reason.startswith("this replica hands no pages over")
        client.send(Submit(request=request(), ticket_within_s=5.0))
        assert not client.expect(Rejected).is_invalid
        assert_still_serving(client)


def test_answer_that_is_too_large_for_a_message_ends_its_request_and_not_the_link(
    replica: FakeReplica, connect: Connect
) -> None:
    client = connect()
    client.send(Reserve(request=request(), deadline_s=5))
    client.expect(Reserved)
    scores = (0.5,) * (MAX_MESSAGE_BYTES // 9 + 1)
    replica.server._deliver(
        [TokenOutput(request_id=RequestId("r"), first_index=0, token_ids=(), finish_reason="stop", embedding=scores)]
    )
    rejected = client.expect(Rejected)
    assert (rejected.request_id, rejected.is_invalid, rejected.field) == ("r", True, "prompt_logprobs")
    assert "take more than 64 MiB; ask for fewer of each, or send a shorter prompt" in rejected.message
    assert_still_serving(client)


@dataclass
class Granted:
    """A reservation into which the writer may write, and its connection for contents."""

    ticket: HandoverTicket
    pages: PageClient


Grant = Callable[[WireClient, WireClient], Granted]


@pytest.fixture
def grant() -> Iterator[Grant]:
    opened: list[PageClient] = []

    def grant(router: WireClient, writer: WireClient) -> Granted:
        ticket, granted = reserved(router, writer)
        opened.append(PageClient(granted))
        return Granted(ticket, opened[-1])

    yield grant
    for client in opened:
        client.close()


def reserved(router: WireClient, writer: WireClient) -> tuple[HandoverTicket, PushGranted]:
    router.send(Reserve(request=request(), deadline_s=5))
    ticket = router.expect(Reserved).ticket
    writer.send(
        BeginPush(
            request_id=RequestId("r"),
            generation=ticket.generation,
            layout=make_layout(),
            process_id=1,
            process_start=0,
            uses_shared_memory=False,
        )
    )
    return ticket, writer.expect(PushGranted)


@pytest.mark.parametrize(
    ("pages", "content"), [((), b""), ((99,), b"x"), ((2**63,), b""), ((), b"x")], ids=["none", "other", "huge", "odd"]
)
def test_bad_pages_fail_one_hand_over_and_nothing_else(
    connect: Connect, grant: Grant, pages: tuple[int, ...], content: bytes
) -> None:
    router, writer = connect(), connect()
    granted = grant(router, writer)
    indices = tuple(PageIndex(page) for page in pages)
    granted.pages.push(PushPages(generation=granted.ticket.generation, page_indices=indices), content)
    assert router.expect(HandoverFailed).request_id == "r"
    assert_still_serving(router)


@pytest.mark.parametrize("emitted", [(), (VOCAB_SIZE,), (-1,), (2**63,)])
def test_bad_commit_fails_one_hand_over_and_nothing_else(
    connect: Connect, grant: Grant, emitted: tuple[int, ...]
) -> None:
    router, writer = connect(), connect()
    ticket = grant(router, writer).ticket
    writer.send(Commit(generation=ticket.generation, emitted_token_ids=emitted))
    assert router.expect(HandoverFailed).generation == ticket.generation
    assert_still_serving(router)


@pytest.mark.parametrize("junk", [b"\0" * 8, LENGTHS.pack(1, 0) + b"\xc1", LENGTHS.pack(2**20, 0)])
def test_junk_among_contents_ends_their_connection_and_nothing_else(
    connect: Connect, grant: Grant, junk: bytes
) -> None:
    router = connect()
    pages = grant(router, connect()).pages
    pages.push_raw(junk)
    pages.expect_closed()
    assert_still_serving(router)


def test_failed_hand_over_may_be_submitted_under_its_own_id(connect: Connect, grant: Grant) -> None:
    router, writer = connect(), connect()
    granted = grant(router, writer)
    granted.pages.push(PushPages(generation=granted.ticket.generation, page_indices=()), b"")
    router.expect(HandoverFailed)
    assert router.generate(request()) == expected_answer(request())[0]


def test_message_for_no_reservation_harms_nobody(connect: Connect) -> None:
    client = connect()
    client.send(PushPages(generation=Generation(77), page_indices=()))
    client.send(Commit(generation=Generation(77), emitted_token_ids=()))
    assert_still_serving(client)


def test_tokens_of_a_router_that_is_gone_are_for_nobody_and_its_requests_end(
    replica: FakeReplica, connect: Connect
) -> None:
    sampling = SamplingParams(max_tokens=40, seed=0, ignore_eos=True)
    with closing(WireClient(replica.endpoint, SECRET)) as gone:
        gone.send(Submit(request=make_request("r", [1], sampling=sampling)))
        gone.stats()
    client = connect()
    assert_still_serving(client)
    while client.stats().stats.num_running:
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_dead_thread_is_seen() -> None:
    with closing(FakeReplica()) as replica:

        def post_what_fails(engine: Engine) -> None:
            replica.server._thread.post(lambda: 1 / 0 and None)

        replica.server.loop.post(post_what_fails)
        replica.server._thread._thread.join(10)
        assert not replica.server.is_alive
