"""Page events over real sockets: what a subscriber hears, and how it catches up."""

from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from kvasir_protocol.ids import PageIndex
from kvasir_protocol.kv_events import (
    DUMP_REQUEST,
    MEDIUM_GPU,
    AllBlocksCleared,
    BlockStored,
    KvEventBatch,
    parse_answer,
    parse_publication,
    sequence_bytes,
)
from kvasir_protocol.page_hash import child_hash, root_hash
from kvasir_protocol.sockets import bind_publisher, bind_server, connect_client, connect_subscriber, start_gatekeeper
from kvasir_workers.kv.event_log import KvEventLog
from kvasir_workers.kv.event_server import EventSockets, KvEventServer, Replays
from kvasir_workers.kv.prefix_tree import CachedPage, token_bytes
from tests.unit.workers.kv.event_reader import Reader

SECRET = b"s" * 32
ROOT = root_hash(1)
DEADLINE_MS = 20_000


def first_page(token_id: int) -> CachedPage:
    return CachedPage(
        page=PageIndex(token_id),
        name=child_hash(ROOT, [token_id]),
        parent=ROOT,
        content=token_bytes([token_id]),
        is_full=True,
        salt="",
    )


class Publisher:
    """A server, a subscriber and one who asks."""

    def __init__(self, capacity: int = 10_000) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.gatekeeper = start_gatekeeper(self.context, SECRET)
        publisher, self.endpoint = bind_publisher(self.context, SECRET, "127.0.0.1", 0)
        replay, replay_endpoint = bind_server(self.context, SECRET, "127.0.0.1", 0)
        self.log = KvEventLog(capacity=capacity)
        sockets = EventSockets(publisher=publisher, replay=replay)
        self.server = KvEventServer(self.context, sockets, self.log, "kv@r@m", clock=lambda: 3.0)
        self.client_context: zmq.Context[Any] = zmq.Context()
        self.subscriber = connect_subscriber(self.client_context, SECRET, self.endpoint, "kv@")
        self.asker = connect_client(self.client_context, SECRET, replay_endpoint)

    def hear(self) -> tuple[int, KvEventBatch]:
        assert self.subscriber.poll(DEADLINE_MS), "nothing was published"
        return parse_publication(self.subscriber.recv_multipart())

    def ask(self, body: bytes) -> list[tuple[int, KvEventBatch]]:
        self.asker.send_multipart([b"", body])
        answers = []
        while True:
            assert self.asker.poll(DEADLINE_MS), "no answer"
            answer = parse_answer(self.asker.recv_multipart())
            if answer is None:
                return answers
            answers.append(answer)

    def settle(self) -> None:
        """Until the subscription has reached the publisher: pages that nobody misses come and go."""
        probe = first_page(999_999)
        while not self.subscriber.poll(50):
            self.log.page_stored(probe, MEDIUM_GPU)
            self.log.page_removed(probe, MEDIUM_GPU)
        self.ask(DUMP_REQUEST)  # all that was written is published after this
        while self.subscriber.poll(100):
            self.subscriber.recv_multipart()

    def close(self) -> None:
        self.server.stop()
        self.client_context.destroy(linger=0)
        self.gatekeeper.stop()
        self.context.destroy(linger=0)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher()
    made.server.start()
    yield made
    assert made.server.is_alive
    made.close()


def test_subscriber_hears_batches_numbered_without_gaps(publisher: Publisher) -> None:
    publisher.settle()
    numbers = []
    for token_id in range(3):
        publisher.log.page_stored(first_page(token_id), MEDIUM_GPU)
        number, batch = publisher.hear()
        numbers.append(number)
        assert [event.token_ids for event in batch.events if isinstance(event, BlockStored)] == [(token_id,)]
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    assert (batch.timestamp, batch.data_parallel_rank) == (3.0, 0)


def test_first_batch_says_that_nothing_is_cached(publisher: Publisher) -> None:
    publisher.log.page_stored(first_page(1), MEDIUM_GPU)
    publisher.ask(DUMP_REQUEST)
    replayed = publisher.ask(sequence_bytes(0))
    assert (replayed[0][0], replayed[0][1].events) == (0, (AllBlocksCleared(),))


def test_replay_begins_where_it_is_asked_to(publisher: Publisher) -> None:
    for token_id in range(4):
        publisher.log.page_stored(first_page(token_id), MEDIUM_GPU)
        publisher.ask(DUMP_REQUEST)
    assert [number for number, _ in publisher.ask(sequence_bytes(3))] == [3, 4]
    assert publisher.ask(sequence_bytes(99)) == []


def test_newcomer_has_everything_after_a_dump_and_what_follows(publisher: Publisher) -> None:
    publisher.settle()
    for token_id in range(2500):
        publisher.log.page_stored(first_page(token_id), MEDIUM_GPU)
        if token_id % 3 == 0:
            publisher.log.page_removed(first_page(token_id), MEDIUM_GPU)
        if token_id == 1500:
            dump = publisher.ask(DUMP_REQUEST)
    reader, known = Reader(), dump[-1][0]
    assert {number for number, _ in dump} == {known}
    for _, batch in dump:
        reader.apply(batch.events)
    everything = {child_hash(ROOT, [token_id]) for token_id in range(2500) if token_id % 3}
    while set(reader.tokens) != everything:
        number, batch = publisher.hear()
        if number > known:
            assert number == known + 1
            known = number
            reader.apply(batch.events)


def test_what_was_dropped_is_seen_as_a_gap() -> None:
    publisher = Publisher(capacity=2)
    for token_id in range(5):
        publisher.log.page_stored(first_page(token_id), MEDIUM_GPU)
    publisher.server.start()
    dump = publisher.ask(DUMP_REQUEST)
    assert [number for number, _ in publisher.ask(sequence_bytes(0))] == [0, 1, 3]
    reader = Reader()
    reader.apply(dump[0][1].events)
    assert (dump[0][0], len(reader.tokens)) == (3, 5)
    publisher.close()


@pytest.mark.parametrize("frames", [[b"dump"], [b"", b"what"], [b"", b"", b""], [b"x", DUMP_REQUEST]])
def test_bad_request_is_dropped_and_harms_nobody(publisher: Publisher, frames: list[bytes]) -> None:
    publisher.asker.send_multipart(frames)
    assert len(publisher.ask(DUMP_REQUEST)) == 1


def test_stranger_hears_nothing(publisher: Publisher) -> None:
    stranger = connect_subscriber(publisher.client_context, b"x" * 32, publisher.endpoint)
    publisher.settle()
    publisher.log.page_stored(first_page(1), MEDIUM_GPU)
    publisher.hear()
    assert not stranger.poll(100)


def test_old_batches_make_room_for_new_ones() -> None:
    replays = Replays(capacity_bytes=10)
    for number in range(5):
        replays.append(number, b"1234")
    assert replays.since(0) == [(3, b"1234"), (4, b"1234")]
