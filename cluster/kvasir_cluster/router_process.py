"""The router as a child process. It holds no state: one that died is simply started again."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kvasir_cluster.listening import url_of
from kvasir_protocol.config import ClusterConfig, ModelConfig, RouterConfig
from kvasir_protocol.errors import ServiceUnavailable

MAX_RESTARTS = 5
RESTART_WINDOW_S = 60.0
"""More deaths than MAX_RESTARTS within this time, and another restart would not help."""

BAD_SETTINGS = 2
"""The router's exit code when it can't run with its settings: it has told why, and would again."""

DRAIN_S = 10.0
"""For running answers to end after SIGTERM; the router itself is done within 5 s."""

HEALTH_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterHealth:
    """What /health tells: how many replicas the router reaches."""

    num_live: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOrder:
    """What a router serves, and from whom it learns of the replicas."""

    models: tuple[ModelConfig, ...]
    router: RouterConfig
    handover_deadline_s: float
    secret: bytes = field(repr=False)
    controller_endpoint: str
    log_level: str

    @classmethod
    def of(cls, config: ClusterConfig, *, secret: bytes, controller_endpoint: str, log_level: str) -> "RouterOrder":
        """What concerns the routers of a cluster."""
        return cls(
            models=config.all_models,
            router=config.router,
            handover_deadline_s=config.handover.deadline_s,
            secret=secret,
            controller_endpoint=controller_endpoint,
            log_level=log_level,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterCommand:
    """words start a router that inherits the descriptors in files."""

    words: tuple[str, ...]
    files: tuple[int, ...]


class RouterProcess:
    """A router on a socket that this process holds, so that no connection is refused while it restarts."""

    def __init__(self, command: RouterCommand, listener: socket.socket) -> None:
        """command: what starts a router that serves on listener (`router_command`)."""
        self._command = command
        self._listener = listener
        self._url = url_of(listener)
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths_s: list[float] = []

    def start(self) -> None:
        """Return at once; it serves a little later."""
        self._process = subprocess.Popen(
            self._command.words,
            stdin=subprocess.DEVNULL,
            pass_fds=self._command.files,
            # Ctrl-C in the terminal goes to the whole group; the router must hear it from us, in its turn.
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        )

    def keep_alive(self) -> bool:
        """Start it again if it died; True if it had. Raises ServiceUnavailable when that would not help."""
        assert self._process is not None, "start comes first"
        code = self._process.poll()
        if code is None:
            return False
        if code == BAD_SETTINGS:
            raise ServiceUnavailable("the router can't run with these settings; the line above is its own")
        now = time.monotonic()
        self._deaths_s = [death for death in self._deaths_s if now - death < RESTART_WINDOW_S] + [now]
        if len(self._deaths_s) > MAX_RESTARTS:
            raise ServiceUnavailable(
                f"the router died {len(self._deaths_s)} times within {RESTART_WINDOW_S:g} s, "
                f"last with exit code {code}; KVASIR_LOG_LEVEL=info tells more"
            )
        self.start()
        return True

    def health(self) -> RouterHealth | None:
        """What it says of itself; None while it does not answer."""
        connection = http.client.HTTPConnection(urlsplit(self._url).netloc, timeout=HEALTH_TIMEOUT_S)
        try:
            connection.request("GET", "/health")
            return RouterHealth(num_live=int(json.loads(connection.getresponse().read())["live"]))
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return None
        finally:
            connection.close()

    def ask_to_stop(self) -> None:
        """Let it take no new requests and end those that run."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def ask_to_leave(self) -> None:
        """The same where another has the socket, too: what runs may take half a minute to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)

    def has_stopped(self) -> bool:
        return self._process is None or self._process.poll() is not None


def router_command(order: RouterOrder, listener: socket.socket) -> RouterCommand:
    """How to start the router of a cluster on listener."""
    router = order.router
    secret = _hidden_file(order.secret)
    files = [listener.fileno(), secret]
    command = [sys.executable, "-m", "kvasir_router"]
    for model in order.models:
        command += ["--model", model.path, "--served-model-name", model.served_name]
    command += ["--controller", order.controller_endpoint, "--secret-file", _path_of(secret)]
    command += ["--fd", str(listener.fileno()), "--parent-pid", str(os.getpid())]
    command += ["--policy", router.policy, "--max-inflight", str(router.max_inflight_requests)]
    command += ["--handover-deadline-s", str(order.handover_deadline_s)]
    command += ["--log-level", order.log_level]
    if router.api_keys:
        keys = _hidden_file("".join(f"{key}\n" for key in router.api_keys).encode())
        files.append(keys)
        command += ["--api-key-file", _path_of(keys)]
    return RouterCommand(words=tuple(command), files=tuple(files))


def _hidden_file(content: bytes) -> int:
    """A descriptor of a file in memory: what is secret is neither on disk nor on a command line that all can read."""
    descriptor = os.memfd_create("kvasir")
    os.fchmod(descriptor, 0o600)
    os.write(descriptor, content)
    return descriptor


def _path_of(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
