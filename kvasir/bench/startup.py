"""A server started, asked for one token, and stopped: how long each part took."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kvasir_protocol.errors import ServiceUnavailable

POLL_S = 0.02

STOP_S = 60.0
"""`kvasir serve` gives its replicas and Ray up to half of that."""

KVASIR = (sys.executable, "-c", "import sys; from kvasir.cli.main import main; sys.exit(main())")
"""The command of this very installation, wherever its script lies."""

PHASE = re.compile(r"^  (\S.*?) +(\d+\.\d) s$", re.MULTILINE)
READY = re.compile(r"^ready in (\d+\.\d) s$", re.MULTILINE)
LISTENING = re.compile(r"^listening on (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds. phases_s: as the server told them, in its order. first_token_s: from the process's start to the first
    token of a first request; stop_s: from asking it to stop to its end."""

    phases_s: dict[str, float] = field(default_factory=dict)
    ready_s: float = 0.0
    first_token_s: float = 0.0
    stop_s: float = 0.0

    def columns(self) -> dict[str, float]:
        """All of them by name."""
        return {**self.phases_s, "ready": self.ready_s, "first token": self.first_token_s, "stop": self.stop_s}


def read_phases(output: str) -> dict[str, float]:
    """What `kvasir serve` prints when it is not in a terminal."""
    return {name: float(seconds) for name, seconds in PHASE.findall(output)}


@dataclass(frozen=True, slots=True)
class StartupBench:
    """command: starts a server that prints phases, `listening on URL` and `ready`; timeout_s is for one start."""

    command: Sequence[str]
    timeout_s: float

    def measure(self) -> Start:
        """Raises ServiceUnavailable if it does not start, answer or stop."""
        with tempfile.TemporaryFile("w+") as log:
            started_s = time.monotonic()
            with _running(self.command, log.fileno()) as process:
                output = self._wait_for_ready(process, Path(f"/proc/self/fd/{log.fileno()}"), started_s)
                _ask_for_one_token(_found(LISTENING, output))
                first_token_s = time.monotonic() - started_s
                stopping_s = time.monotonic()
                _stop(process)
            return Start(
                phases_s=read_phases(output),
                ready_s=float(_found(READY, output)),
                first_token_s=first_token_s,
                stop_s=time.monotonic() - stopping_s,
            )

    def _wait_for_ready(self, process: subprocess.Popen[bytes], log: Path, started_s: float) -> str:
        while True:
            output = log.read_text()
            if READY.search(output) and LISTENING.search(output):
                return output
            if process.poll() is not None:
                last = output.strip().rpartition("\n")[2]
                raise ServiceUnavailable(f"the server ended with exit code {process.returncode}: {last}")
            if time.monotonic() - started_s > self.timeout_s:
                raise ServiceUnavailable(f"the server was not ready in {self.timeout_s:g} s; see --timeout")
            time.sleep(POLL_S)


@contextmanager
def _running(command: Sequence[str], log: int) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a session of its own; it does not outlive the block."""
    process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_S)
    except subprocess.TimeoutExpired as error:
        raise ServiceUnavailable(f"the server did not stop in {STOP_S:g} s") from error
    if code != 0:
        raise ServiceUnavailable(f"the server stopped with exit code {code}")


def _ask_for_one_token(url: str) -> None:
    import httpx

    key = os.environ.get("KVASIR_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        body = {"prompt": "Hello", "max_tokens": 1, "ignore_eos": True}
        response = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False)
    except httpx.HTTPError as error:
        raise ServiceUnavailable(f"the server said it is ready, but did not answer: {error}") from error
    if response.is_error:
        raise ServiceUnavailable(f"the server answered {response.status_code}: {response.text[:200]}")


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    assert match is not None, text
    return match[1]
