"""A `kvasir serve` as a person starts it: a child process, its output, and all that goes by its name."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from kvasir.cli.instance import Instance

DEADLINE_S = 90.0
END_S = 60.0

KVASIR = str(Path(sys.executable).with_name("kvasir"))
"""The command that the installation made."""

SMALL = ("--port", "0", "--kv-cache-memory-bytes", "16MiB", "--max-num-seqs", "16")


class Serving:
    """One server; its output goes to a file below `home`, which is also its KVASIR_HOME."""

    def __init__(self, home: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._log = home / "serve.log"
        self._instances: set[str] = set()
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "KVASIR_"))}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [KVASIR, "serve", *SMALL, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=variables | {"KVASIR_HOME": str(home)} | (environment or {}),
            )
        self._seen: dict[int, psutil.Process] = {}

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        match = re.search(r"listening on (\S+)", self.output)
        assert match is not None, self.output
        return match[1]

    def wait_for_output(self, text: str) -> None:
        """Return when text has been printed; fails when the server ends before that."""
        give_up_at = time.monotonic() + DEADLINE_S
        while text not in self.output:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.output}"
            assert time.monotonic() < give_up_at, f"no {text!r} in {DEADLINE_S:g} s: {self.output}"
            self.note_processes()
            time.sleep(0.05)

    def wait_until_ready(self) -> None:
        self.wait_for_output("Ctrl-C stops it")

    def note_processes(self) -> list[psutil.Process]:
        """All processes below the server, remembered for `leftovers`."""
        if self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self._seen[process.pid] = process
            self._instances |= _instances_of(self.process.pid)
        return list(self._seen.values())

    def find_process(self, title: str) -> psutil.Process:
        """The running process below the server whose command line holds title."""
        for process in self.note_processes():
            if is_alive(process) and title in " ".join(process.cmdline()):
                return process
        raise AssertionError(f"no process {title!r}")

    def ranks(self) -> list[psutil.Process]:
        """The processes that compute."""
        return [
            process
            for process in self.note_processes()
            if is_alive(process) and "RankActor" in " ".join(process.cmdline())
        ]

    def ask(self, question: str = "Who was Kvasir?", max_tokens: int = 16) -> str:
        """The server's greedy answer."""
        body = {
            "model": "kvasir-demo",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        response = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])

    def replica_ids(self) -> set[str]:
        """The replicas that are up."""
        replicas = httpx.get(f"{self.url}/status", timeout=10, trust_env=False).json()["replicas"]
        return {replica["id"] for replica in replicas if replica["state"] == "up"}

    def handed_over_bytes(self, transport: str) -> float:
        """What prefill replicas have pushed that way, as the metrics tell."""
        metrics = httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False).text
        wanted = ('direction="pushed"', f'transport="{transport}"')
        return sum(float(line.split()[-1]) for line in metrics.splitlines() if all(word in line for word in wanted))

    def press_ctrl_c(self) -> int:
        """As a terminal does it: everything in the foreground hears it. Waits for the end; the exit code."""
        self.note_processes()
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(END_S)

    @property
    def segments(self) -> list[Path]:
        """Its shared memory, at this moment."""
        return [path for name in _instances_of(self.process.pid) for path in Path("/dev/shm").glob(f"{name}-*")]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.note_processes()
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(END_S)

    def leftovers(self, patience_s: float = 0.0) -> list[str]:
        """Processes, folders and shared memory that are still there patience_s after the end."""
        _, alive = psutil.wait_procs(self.note_processes(), timeout=patience_s)
        living = [str(process) for process in alive if is_alive(process)]
        traces = (
            path for place in ("/tmp", "/dev/shm") for name in self._instances for path in Path(place).glob(f"{name}*")
        )
        return living + [str(path) for path in traces]

    def kill_all(self) -> None:
        """However the test ended: nothing of the server stays behind it."""
        try:
            self.stop()
        finally:
            self.process.kill()
            self._remove_rest()

    def _remove_rest(self) -> None:
        for process in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for name in self._instances:
            Instance(name.removeprefix("kvasir-")).remove()


def is_alive(process: psutil.Process) -> bool:
    """Still there, and not only as a zombie that nobody has collected."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _instances_of(process_id: int) -> set[str]:
    """Names of the folders in which a server with this process id keeps its own."""
    files = Path("/tmp").glob("kvasir-*/pid")
    return {file.parent.name for file in files if file.read_text() == str(process_id)}


class SharedServing:
    """One server for all tests of a file that leave it as good as they found it; after one that ends it there is
    another."""

    def __init__(self, start: Callable[[], Serving]) -> None:
        self._start = start
        self._serving: Serving | None = None

    def __enter__(self) -> "SharedServing":
        return self

    def __exit__(self, *_: object) -> None:
        if self._serving is not None:
            self._serving.kill_all()

    def ready(self) -> Serving:
        if self._serving is None or self._serving.process.poll() is not None:
            self._serving = self._start()
            self._serving.wait_until_ready()
        return self._serving
