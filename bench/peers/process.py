"""A server as a child process: started, waited for, stopped with all that it left behind."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.peers.launch import Launch, Peer

READY_S = 600.0
STOP_S = 60.0
POLL_S = 0.1

MARK = "KVASIR_BENCH_PEER"
"""Environment variable by which all processes of a server are known, whatever group or parent they took."""


class PeerFailed(Exception):
    """It did not start, or died."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(peer: Peer, launch: Launch) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """The process and the seconds from its command until it was ready. Raises PeerFailed."""
    log = launch.scratch / "server.log"
    mark = secrets.token_hex(8)
    command = peer.command(launch)
    started_s = time.monotonic()
    process = start(command, {**peer.environment, MARK: mark}, log)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{launch.port}{peer.ready_path}", log)
        yield process, time.monotonic() - started_s
    finally:
        stop(process)
        end_marked(mark)


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C is ours and `stop` reaches all of it."""
    with log.open("wb") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment},
        )


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up_s = time.monotonic() + READY_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise PeerFailed(f"ended with exit code {process.returncode}: {last[:200]}")
        with contextlib.suppress(OSError), opener.open(url, timeout=2):
            return
        if time.monotonic() > give_up_s:
            raise PeerFailed(f"not ready in {READY_S:g} s")
        time.sleep(POLL_S)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, and then end what is left of its group."""
    assert process.stdin is not None
    process.stdin.close()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_marked(mark: str) -> None:
    """End what the server left in other groups: vLLM, asked to stop while it loads, leaves a process of its API."""
    entry = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if entry in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)
