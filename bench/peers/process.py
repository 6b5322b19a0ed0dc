"""A server as a child process: started, waited for, stopped with all that it left behind."""

import contextlib
import os
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


class PeerFailed(Exception):
    """It did not start, or died."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(peer: Peer, launch: Launch) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """The process and the seconds until it was ready. Raises PeerFailed."""
    log = launch.scratch / "server.log"
    process = start(peer.command(launch), peer.environment, log)
    try:
        started_s = time.monotonic()
        wait_until_ready(process, f"http://127.0.0.1:{launch.port}{peer.ready_path}", log)
        yield process, time.monotonic() - started_s
    finally:
        stop(process)


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


def cpu_seconds_of_tree(root: int) -> float:
    """CPU time of a process, all below it, and the children that these have waited for."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = path.read_text().partition(" (")
            fields = rest.rpartition(") ")[2].split()
            parents[int(pid)] = int(fields[1])
            seconds[int(pid)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return sum(seconds[pid] for pid in seconds if _is_below(pid, root, parents))


def _is_below(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    while pid in parents and pid != root:
        pid = parents[pid]
    return pid == root


def busy_seconds_of_host() -> float:
    """CPU time that anybody took, since the host started."""
    user, nice, system, _, _, interrupts, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
