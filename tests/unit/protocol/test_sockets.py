"""Who may speak: the secret's file, and the sockets that it opens."""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import zmq

from kvasir_protocol.errors import ConfigError
from kvasir_protocol.sockets import (
    SECRET_BYTES,
    _key_pair,
    bind_server,
    connect_client,
    is_kept_close,
    load_or_create_secret,
    load_secret,
    start_gatekeeper,
)
from kvasir_protocol.wire import MAX_MESSAGE_BYTES

SECRET = b"s" * SECRET_BYTES
DEADLINE_MS = 10_000
SILENCE_MS = 250
"""Long after a handshake on this host would have been done."""


def test_secret_is_made_at_first_use_and_kept(tmp_path: Path) -> None:
    made = load_or_create_secret(tmp_path / "secret")
    assert len(made) == SECRET_BYTES
    assert load_or_create_secret(tmp_path / "secret") == load_secret(tmp_path / "secret") == made


def test_secret_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create_secret(tmp_path / "deep" / "er" / "secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "er" / "secret").stat().st_mode) == 0o600


def test_all_who_start_at_once_get_the_same_whole_secret(tmp_path: Path) -> None:
    """Twenty times eight, let go together: who reads while another writes must never see half a secret."""
    start = Barrier(8)

    def create(path: Path) -> bytes:
        start.wait(10)
        return load_or_create_secret(path)

    with ThreadPoolExecutor(8) as pool:
        for attempt in range(20):
            path = tmp_path / str(attempt) / "secret"
            assert len(set(pool.map(create, [path] * 8))) == 1
            assert [file.name for file in path.parent.iterdir()] == ["secret"]


def test_two_secrets_differ(tmp_path: Path) -> None:
    assert load_or_create_secret(tmp_path / "a") != load_or_create_secret(tmp_path / "b")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o601])
def test_secret_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    load_or_create_secret(tmp_path / "secret")
    (tmp_path / "secret").chmod(mode)
    with pytest.raises(ConfigError, match="run: chmod 600"):
        load_or_create_secret(tmp_path / "secret")


@pytest.mark.parametrize(
    ("mode", "as_own", "as_mounted"),
    [
        (0o600, True, True),
        (0o400, True, True),
        (0o440, False, True),
        (0o640, False, True),
        (0o660, False, False),
        (0o450, False, False),
        (0o444, False, False),
        (0o604, False, False),
        (0o602, False, False),
    ],
)
def test_group_may_read_a_mounted_secret_and_the_world_none(mode: int, as_own: bool, as_mounted: bool) -> None:
    assert is_kept_close(mode, is_mounted=False) == as_own
    assert is_kept_close(mode, is_mounted=True) == as_mounted


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_secret_of_another_owner_may_be_read_by_the_group(tmp_path: Path) -> None:
    made = load_or_create_secret(tmp_path / "secret")
    (tmp_path / "secret").chmod(0o440)
    with pytest.raises(ConfigError, match="can be read by others"):
        load_secret(tmp_path / "secret")
    os.chown(tmp_path / "secret", 65534, -1)
    assert load_secret(tmp_path / "secret") == made


@pytest.mark.parametrize("size", [0, SECRET_BYTES - 1])
def test_truncated_secret_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "secret").write_bytes(b"x" * size)
    (tmp_path / "secret").chmod(0o600)
    with pytest.raises(ConfigError, match=f"has {size} bytes, needs {SECRET_BYTES}"):
        load_or_create_secret(tmp_path / "secret")


def test_missing_secret_is_refused_where_it_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_secret(tmp_path / "secret")


def test_secret_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="can't make the cluster secret"):
        load_or_create_secret(tmp_path / "file" / "secret")


def test_directory_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_or_create_secret(tmp_path)


@pytest.fixture
def server() -> Iterator[tuple[Any, str]]:
    """A listening socket and its address."""
    context: zmq.Context[Any] = zmq.Context()
    gatekeeper = start_gatekeeper(context, SECRET)
    socket, endpoint = bind_server(context, SECRET, "127.0.0.1", 0)
    yield socket, endpoint
    gatekeeper.stop()
    context.destroy(linger=0)


@pytest.fixture
def context() -> Iterator[Any]:
    """Of the clients, who know nothing of the server's."""
    clients: zmq.Context[Any] = zmq.Context()
    yield clients
    clients.destroy(linger=0)


def test_client_with_the_secret_is_answered(server: tuple[Any, str], context: Any) -> None:
    socket, endpoint = server
    client = connect_client(context, SECRET, endpoint)
    client.send(b"question")
    assert socket.poll(DEADLINE_MS)
    peer, question = socket.recv_multipart()
    socket.send_multipart([peer, b"answer"])
    assert client.poll(DEADLINE_MS)
    assert (question, client.recv()) == (b"question", b"answer")


def test_message_of_the_most_bytes_arrives_and_the_next_one_too(server: tuple[Any, str], context: Any) -> None:
    """A longer one would break the connection."""
    socket, endpoint = server
    client = connect_client(context, SECRET, endpoint)
    client.send(bytes(MAX_MESSAGE_BYTES))
    client.send(b"next")
    sizes = []
    for _ in range(2):
        assert socket.poll(DEADLINE_MS)
        sizes.append(len(socket.recv_multipart()[1]))
    assert sizes == [MAX_MESSAGE_BYTES, 4]


def test_client_with_another_secret_is_refused(server: tuple[Any, str], context: Any) -> None:
    socket, endpoint = server
    stranger = connect_client(context, b"x" * SECRET_BYTES, endpoint)
    stranger.send(b"question")
    assert not socket.poll(SILENCE_MS)


def test_client_that_knows_only_the_servers_public_key_is_refused(server: tuple[Any, str], context: Any) -> None:
    """The handshake succeeds; the gatekeeper says no."""
    socket, endpoint = server
    stranger = context.socket(zmq.DEALER)
    stranger.linger = 0
    stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
    stranger.curve_serverkey, _ = _key_pair(SECRET, b"server")
    stranger.connect(endpoint)
    stranger.send(b"question")
    assert not socket.poll(SILENCE_MS)


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ, zmq.ROUTER])
def test_plaintext_client_is_refused(server: tuple[Any, str], context: Any, kind: int) -> None:
    socket, endpoint = server
    stranger = context.socket(kind)
    stranger.linger = 0
    stranger.connect(endpoint)
    if kind != zmq.ROUTER:
        stranger.send(b"question")
    assert not socket.poll(SILENCE_MS)


def test_client_does_not_speak_to_a_server_without_the_secret(context: Any) -> None:
    impostor = context.socket(zmq.ROUTER)
    port = impostor.bind_to_random_port("tcp://127.0.0.1")
    client = connect_client(context, SECRET, f"tcp://127.0.0.1:{port}")
    client.send(b"prompt")
    assert not impostor.poll(SILENCE_MS)


def test_sending_to_a_peer_that_is_gone_is_an_error(server: tuple[Any, str]) -> None:
    socket, _ = server
    with pytest.raises(zmq.ZMQError) as caught:
        socket.send_multipart([b"nobody", b"hello"])
    assert caught.value.errno == zmq.EHOSTUNREACH


def test_taken_port_is_a_config_error(server: tuple[Any, str], context: Any) -> None:
    port = int(server[1].rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{port}"):
        bind_server(context, SECRET, "127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1"])
def test_host_that_is_not_ours_is_a_config_error(context: Any, host: str) -> None:
    with pytest.raises(ConfigError, match=f"can't listen on {host}"):
        bind_server(context, SECRET, host, 0)
