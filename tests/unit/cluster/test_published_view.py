import socket

import pytest
import zmq

from kvasir_cluster.listening import CONTROL_PORTS
from kvasir_cluster.published_view import PublishedView
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.messages import GetView
from kvasir_protocol.sockets import connect_client
from kvasir_protocol.view import ReplicaAddress
from kvasir_protocol.wire import decode, encode

SECRET = b"s" * 32
DEADLINE_MS = 10_000
FIRST, SECOND = (
    ReplicaAddress(replica_id=ReplicaId(f"mixed-{number}"), role="mixed", endpoint=f"tcp://127.0.0.1:{number}")
    for number in (8, 9)
)


@pytest.fixture
def published():
    published = PublishedView(SECRET, "127.0.0.1", bind_s=0.0)
    yield published
    published.stop()


@pytest.fixture
def read(published):
    """A function that gives the view as a router gets it."""
    with zmq.Context() as context:
        sockets = []

        def read():
            sockets.append(connect_client(context, SECRET, published.endpoint))
            sockets[-1].send(encode(GetView()))
            assert sockets[-1].poll(DEADLINE_MS)
            return decode(sockets[-1].recv()).view

        yield read
        for each in sockets:
            each.close()


def test_a_version_is_new_when_what_is_shown_is_another_and_only_then(published, read):
    published.serve(0, may_move=False)
    before = read()
    published.show((FIRST,), "loading")
    shown = read()
    assert (shown.replicas, shown.phase, shown.version) == ((FIRST,), "loading", before.version + 1)
    published.show((FIRST,), "loading")
    assert read() == shown


def test_who_is_shown_for_the_first_time_is_told_once(published):
    assert published.show((FIRST,), "loading") == [FIRST]
    assert published.show((FIRST, SECOND), "ready") == [SECOND]
    assert published.show((FIRST, SECOND), "ready") == []


def test_a_phase_that_is_told_is_no_news_for_routers(published, read):
    published.serve(0, may_move=False)
    before = read()
    published.tell_phase("stopping")
    assert (published.phase, read().version) == ("stopping", before.version)


def test_it_has_an_endpoint_once_it_is_served(published):
    assert published.endpoint is None
    port = published.serve(0, may_move=False)
    assert published.endpoint == f"tcp://127.0.0.1:{port}"
    assert port in CONTROL_PORTS


def test_a_port_that_is_somebody_elses_is_left_only_if_routers_can_be_told(published):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{taken}"):
            published.serve(taken, may_move=False)
        assert published.endpoint is None
        assert published.serve(taken, may_move=True) in CONTROL_PORTS
