"""Sockets and ports that a cluster's processes listen on."""

import random
import socket

from kvasir_protocol.errors import ConfigError

CONTROL_PORTS = range(20000, 30000)
"""Below the ports that Linux gives to outgoing connections, so that none takes the controller's while it restarts."""

QUEUED_CONNECTIONS = 2048


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, for the router to inherit; port 0 lets the system choose. Raises ConfigError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"can't listen on {host!r}: {error.strerror}") from error
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # At once: two sockets may be bound to one port, but only one may listen.
        listener.listen(QUEUED_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen on {host} port {port}: {error.strerror}; choose another with --port or router.port"
        ) from error
    return listener


def find_control_port(host: str) -> int:
    """A port on one of this host's addresses that nobody listens on."""
    for port in random.sample(CONTROL_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise ConfigError(f"no free port between {CONTROL_PORTS.start} and {CONTROL_PORTS.stop} for the controller")


def url_of(listener: socket.socket) -> str:
    """Where a client on this host reaches it."""
    host, port = listener.getsockname()[:2]
    match host:
        case "0.0.0.0":
            host = "127.0.0.1"
        case "::":
            host = "[::1]"
        case _ if ":" in host:
            host = f"[{host}]"
    return f"http://{host}:{port}"
