"""ZeroMQ sockets with CURVE keys that derive from one cluster secret.

Who knows the secret may speak; everybody else is refused in the handshake and can't read along.
"""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from kvasir_protocol.errors import ConfigError
from kvasir_protocol.wire import MAX_MESSAGE_BYTES

SECRET_BYTES = 32

_ZAP_DOMAIN = "kvasir"

HEARTBEAT_MS = 1000
PEER_TIMEOUT_MS = 4000
"""A silent peer (a pulled cable) counts as gone after this long; a closed connection at once."""

_CURVE_BYTES = 64
"""More than the encryption adds to a message: the limit of the sockets counts that, too."""

QUEUE_FRAMES = 100_000
"""Frames that may wait for one slow peer before new ones are refused."""


def load_or_create_secret(path: Path) -> bytes:
    """The cluster secret in a file of mode 0600, made at first use; whoever starts at the same time gets the same.

    Raises ConfigError if it can't be made, or for the reasons of `load_secret`.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            _create_secret(path)
    except OSError as error:
        raise ConfigError(f"can't make the cluster secret {path}: {error.strerror}") from error
    return load_secret(path)


def _create_secret(path: Path) -> None:
    """Written under another name and linked when whole, so that nobody ever reads half a secret."""
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def load_secret(path: Path) -> bytes:
    """The cluster secret in a file. Raises ConfigError if it is missing, too short, or readable by others."""
    try:
        secret = path.read_bytes()
        status = path.stat()
        is_read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError as error:
        raise ConfigError(f"can't read the cluster secret {path}: {error.strerror}") from error
    if len(secret) < SECRET_BYTES:
        raise ConfigError(f"the cluster secret {path} has {len(secret)} bytes, needs {SECRET_BYTES}; delete it")
    if not is_kept_close(status.st_mode, is_mounted=is_read_only or status.st_uid != os.geteuid()):
        raise ConfigError(f"the cluster secret {path} can be read by others; run: chmod 600 {path}")
    return secret


def is_kept_close(mode: int, *, is_mounted: bool) -> bool:
    """Whether a secret file of this mode is for its readers only: its owner, and of a mounted one the group as well.

    is_mounted: it is another's, or on a read-only mount, as Kubernetes gives a Secret to a container that is not root:
    root's, mode 0440, through the group of the pod (fsGroup). Nobody may write it but its owner.
    """
    return not mode & (0o037 if is_mounted else 0o077)


def _key_pair(secret: bytes, side: bytes) -> tuple[bytes, bytes]:
    """(public, private) CURVE keys of one side, in Z85."""
    private = z85.encode(hashlib.blake2b(secret, digest_size=32, person=b"kvasir-" + side).digest())
    return zmq.curve_public(private), private


class _Gatekeeper:
    """Admits the one client key that derives from the secret (ZAP, RFC 27)."""

    def __init__(self, secret: bytes) -> None:
        self._admitted, _ = _key_pair(secret, b"client")

    def callback(self, domain: str, key: bytes) -> bool:
        del domain
        return secrets.compare_digest(key, self._admitted)


def start_gatekeeper(context: zmq.Context[Any], secret: bytes) -> ThreadAuthenticator:
    """Check every client of the context's server sockets from now on; stop() it before the context ends."""
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(domain=_ZAP_DOMAIN, credentials_provider=_Gatekeeper(secret))
    return authenticator


def bind_server(context: zmq.Context[Any], secret: bytes, host: str, port: int) -> tuple[Any, str]:
    """A ROUTER socket listening on host, and its address; port 0 lets the system choose.

    Sending to a peer that is gone raises EHOSTUNREACH; a named client that connects anew is still the same peer.
    Raises ConfigError if the address can't be had.
    """
    socket = context.socket(zmq.ROUTER)
    socket.router_mandatory = True
    socket.router_handover = True
    return socket, _bind(socket, secret, host, port)


def bind_publisher(context: zmq.Context[Any], secret: bytes, host: str, port: int) -> tuple[Any, str]:
    """A PUB socket on host, and its address; it drops what a slow subscriber doesn't take. Raises as `bind_server`."""
    socket = context.socket(zmq.PUB)
    return socket, _bind(socket, secret, host, port)


def _bind(socket: Any, secret: bytes, host: str, port: int) -> str:
    _, private = _key_pair(secret, b"server")
    socket.curve_server = True
    socket.curve_secretkey = private
    socket.zap_domain = _ZAP_DOMAIN.encode()
    _set_common_options(socket)
    try:
        socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        socket.close()
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror}") from error
    return cast(str, socket.last_endpoint.decode())


def connect_client(context: zmq.Context[Any], secret: bytes, endpoint: str, name: bytes = b"") -> Any:
    """A DEALER socket to one server; it reconnects by itself. By its name, if any, the server knows it again then.

    Raises zmq.ZMQError if endpoint is no address.
    """
    socket = context.socket(zmq.DEALER)
    if name:
        socket.routing_id = name
    _connect(socket, secret, endpoint)
    return socket


def connect_subscriber(context: zmq.Context[Any], secret: bytes, endpoint: str, topic: str = "") -> Any:
    """A SUB socket to one publisher, for all topics that begin like this; it reconnects by itself."""
    socket = context.socket(zmq.SUB)
    socket.subscribe(topic)
    _connect(socket, secret, endpoint)
    return socket


def _connect(socket: Any, secret: bytes, endpoint: str) -> None:
    public, private = _key_pair(secret, b"client")
    socket.curve_publickey, socket.curve_secretkey = public, private
    socket.curve_serverkey, _ = _key_pair(secret, b"server")
    socket.reconnect_ivl, socket.reconnect_ivl_max = 50, 1000
    _set_common_options(socket)
    socket.connect(endpoint)


def _set_common_options(socket: Any) -> None:
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = QUEUE_FRAMES
    socket.maxmsgsize = MAX_MESSAGE_BYTES + _CURVE_BYTES
    socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEAT_MS, PEER_TIMEOUT_MS
