import pytest
import zmq

from kvasir_cluster.view_server import ViewServer
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.messages import GetView, Ping, View
from kvasir_protocol.sockets import connect_client
from kvasir_protocol.view import ClusterView, ReplicaAddress
from kvasir_protocol.wire import decode, encode

SECRET = b"s" * 32
DEADLINE_MS = 10_000
REPLICA = ReplicaAddress(replica_id=ReplicaId("mixed-0"), role="mixed", endpoint="tcp://127.0.0.1:9")


@pytest.fixture
def views():
    return [ClusterView(version=7, replicas=(REPLICA,))]


@pytest.fixture
def server(views):
    server = ViewServer(SECRET, "127.0.0.1", 0, lambda: views[-1], patience_s=0.2)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def connect(server):
    """A function that gives a router's socket; the secret may be another's."""
    with zmq.Context() as context:
        sockets = []

        def connect(secret=SECRET):
            sockets.append(connect_client(context, secret, server.endpoint))
            sockets[-1].sndtimeo = DEADLINE_MS
            return sockets[-1]

        yield connect
        for socket in sockets:
            socket.close()


def ask(socket, timeout_ms=DEADLINE_MS):
    socket.send(encode(GetView()))
    return decode(socket.recv()) if socket.poll(timeout_ms) else None


def test_question_is_answered_with_the_view_of_the_moment(connect, views):
    socket = connect()
    assert ask(socket) == View(view=views[0])
    views.append(ClusterView(version=8, replicas=()))
    assert ask(socket) == View(view=views[1])


@pytest.mark.parametrize("frames", [[b"no msgpack"], [encode(Ping())], [b"two", b"frames"], [b""]])
def test_bad_frames_are_dropped_counted_and_survived(server, connect, views, frames):
    socket = connect()
    socket.send_multipart(frames)
    assert ask(socket) == View(view=views[0])
    assert server.num_bad_frames == 1


def test_a_stranger_gets_no_answer(connect, views):
    stranger = connect(b"x" * 32)
    stranger.sndtimeo = 0
    assert ask(connect()) == View(view=views[0])
    assert not stranger.poll(200)


def test_a_port_that_stays_taken_is_told_when_patience_ends(server):
    port = int(server.endpoint.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{port}"):
        ViewServer(SECRET, "127.0.0.1", port, lambda: ClusterView(version=1, replicas=()), patience_s=0.0)
