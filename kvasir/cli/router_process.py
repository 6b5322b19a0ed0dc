"""The router as a child process. It holds no state: one that died is simply started again."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kvasir.cli.host import url_of
from kvasir.cli.setup import Setup
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


class RouterProcess:
    """A router on a socket that this process holds, so that no connection is refused while it restarts."""

    def __init__(self, command: Sequence[str], listener: socket.socket) -> None:
        """command: what starts a router that serves on listener (`router_command`)."""
        self._command = command
        self._listener = listener
        self._url = url_of(listener)
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths_s: list[float] = []

    def start(self) -> None:
        """Return at once; it serves a little later."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            pass_fds=(self._listener.fileno(),),
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

    def has_stopped(self) -> bool:
        return self._process is None or self._process.poll() is not None


def router_command(setup: Setup) -> list[str]:
    """How to start the router of a server; the keys go into a file, which is written here."""
    model, router = setup.config.model, setup.config.router
    command = [sys.executable, "-m", "kvasir_router"]
    command += ["--model", model.path, "--served-model-name", model.served_name]
    command += ["--controller", setup.controller_endpoint, "--secret-file", str(setup.secret_file)]
    command += ["--fd", str(setup.listener.fileno()), "--parent-pid", str(os.getpid())]
    command += ["--policy", router.policy, "--max-inflight", str(router.max_inflight_requests)]
    command += ["--handover-deadline-s", str(setup.config.handover.deadline_s)]
    command += ["--log-level", setup.log_level]
    if router.api_keys:
        command += ["--api-key-file", str(_write_keys(setup))]
    return command


def _write_keys(setup: Setup) -> Path:
    """A file and not the command line, which every user of this host can read."""
    path = setup.instance.directory / "api-keys"
    path.touch(mode=0o600)
    path.write_text("\n".join(setup.config.router.api_keys) + "\n")
    return path
