"""A real replica tells what its prefix cache holds."""

from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from kvasir_protocol.ids import RequestId
from kvasir_protocol.kv_events import DUMP_REQUEST, parse_answer, sequence_bytes
from kvasir_protocol.messages import Hello, Welcome
from kvasir_protocol.page_hash import page_hashes
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.sockets import connect_client
from tests.integration.workers.conftest import SECRET, StartReplica
from tests.unit.workers.kv.event_reader import Reader
from tests.wire_client import WireClient

PROMPT = tuple((7 * i + 3) % 256 for i in range(41))


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


def ask(socket: Any, body: bytes) -> Reader:
    """What a reader knows after all answers to a request."""
    socket.send_multipart([b"", body])
    reader = Reader()
    while True:
        assert socket.poll(20_000), "no answer"
        answer = parse_answer(socket.recv_multipart())
        if answer is None:
            return reader
        reader.apply(answer[1].events)


def test_pages_of_an_answered_request_are_told(start_replica: StartReplica, context: zmq.Context[Any]) -> None:
    replica = start_replica("mixed", publish_kv_events=True)
    client = WireClient(replica.endpoint, SECRET)
    client.send(Hello(sender="router"))
    info = client.expect(Welcome).info
    sampling = SamplingParams(max_tokens=8, temperature=0, seed=0, ignore_eos=True)
    request = GenerationRequest(request_id=RequestId("r"), prompt_token_ids=PROMPT, sampling=sampling)
    answer = client.generate(request)
    asker = connect_client(context, SECRET, info.kv_replay_endpoint)
    dump, replay = ask(asker, DUMP_REQUEST), ask(asker, sequence_bytes(0))
    expected = page_hashes([*PROMPT, *answer[:-1]], page_size=4)
    assert list(dump.tokens) == expected
    assert (dump.tokens, dump.parents) == (replay.tokens, replay.parents)
    assert info.kv_events_endpoint.startswith("tcp://")
    client.close()


def test_replica_that_is_not_asked_to_tell_binds_nothing(start_replica: StartReplica) -> None:
    info = start_replica("mixed").info
    assert (info.kv_events_endpoint, info.kv_replay_endpoint) == ("", "")
