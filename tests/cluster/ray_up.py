"""`ray up` over the hosts of `hosts.py`, with the file that we ship."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from kvasir_kernels.native.build import BuildError, built_library
from tests.cluster.hosts import REPOSITORY, Hosts, python_path, search_path

SHIPPED = REPOSITORY / "deploy/ray/on-premise.yaml"

OPERATOR, HEAD, WORKERS = 0, 1, (2, 3)

OFFERS = {
    HEAD: """--num-cpus=1 --resources={"back":1}""",
    WORKERS[0]: """--num-cpus=2 --resources={"front":1}""",
    WORKERS[1]: """--num-cpus=1 --resources={"back":1}""",
}
"""Two cores for a tensor-parallel group; one each where a pipeline has to span hosts, for which there are two left only
if the head is one of them."""

UP_S = 200.0

ASK = """
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""

FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())"

WAIT_FOR_WORKERS = """
import time, ray
ray.init(address="auto", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < 3:
    time.sleep(0.2)
"""
"""`ray up` returns as soon as the head is up; the head starts the workers."""


class RayCluster:
    """Three hosts that `ray up` made one cluster of, and what the operator does with it."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self._file = hosts.root / "on-premise.yaml"
        self._file.write_text(yaml.safe_dump(_for_these(hosts)))
        for host, offers in OFFERS.items():
            (hosts.home(host) / "offers").write_text(offers)
            _install_kernels(hosts.home(host))

    def up(self) -> None:
        self._on(OPERATOR, "ray get-auth-token --generate")
        self._on(OPERATOR, f"ray up -y --no-config-cache {self._file}")
        self._on(HEAD, f"RAY_AUTH_MODE=token python -c '{WAIT_FOR_WORKERS}'")

    def down(self) -> None:
        """Return when the workers have noticed as well."""
        self._on(OPERATOR, f"ray down -y {self._file}")
        wait_until(lambda: not any(map(self.processes, (HEAD, *WORKERS))), "empty hosts")

    def examine_ssh(self) -> tuple[int, str]:
        """As the operator does before `ray up`."""
        done = self.hosts.run(OPERATOR, "kvasir", "doctor", "--ray-file", str(self._file))
        return done.returncode, done.stdout

    def kvasir(self, words: str) -> tuple[int, str]:
        """Run a command on the head; its exit code and what it said."""
        done = self.hosts.run(HEAD, "env", "RAY_AUTH_MODE=token", "bash", "-c", f"kvasir {words}", timeout_s=UP_S)
        return done.returncode, done.stdout

    def write(self, name: str, text: str) -> Path:
        """A file that every host sees."""
        file = self.hosts.root / name
        file.write_text(text)
        return file

    def ask(self, question: str, max_tokens: int = 12) -> str:
        """The greedy answer of the router on the head, asked from the operator's host."""
        url = f"http://{self.hosts.address(HEAD)}:8000/v1/chat/completions"
        messages = [{"role": "user", "content": question}]
        body = {"model": "kvasir-demo", "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        done = self.hosts.run(OPERATOR, "python", "-c", ASK, url, json.dumps(body))
        assert done.returncode == 0, done.stdout
        return str(json.loads(done.stdout)["choices"][0]["message"]["content"])

    def handed_over_bytes(self, transport: str) -> float:
        """What prefill replicas have pushed that way, as the router on the head tells."""
        done = self.hosts.run(OPERATOR, "python", "-c", FETCH, f"http://{self.hosts.address(HEAD)}:8000/metrics")
        assert done.returncode == 0, done.stdout
        wanted = ('direction="pushed"', f'transport="{transport}"')
        return sum(float(line.split()[-1]) for line in done.stdout.splitlines() if all(word in line for word in wanted))

    def processes(self, host: int) -> list[str]:
        return self.hosts.processes(host)

    def ranks(self) -> dict[int, list[str]]:
        """What serves, by host, as process id and command line."""
        return {host: [line for line in self.processes(host) if "RankActor" in line] for host in (HEAD, *WORKERS)}

    def traces(self) -> list[str]:
        """Files of ours on any host."""
        found = []
        for host in (HEAD, *WORKERS):
            listing = self.hosts.run(host, "bash", "-c", "ls -d /tmp/kvasir* /dev/shm/kvasir* 2>/dev/null; true").stdout
            found += [f"h{host}: {name}" for name in listing.split()]
        return found

    def _on(self, host: int, command: str) -> None:
        done = self.hosts.run(host, "bash", "-c", command, timeout_s=UP_S)
        assert done.returncode == 0, done.stdout


def _install_kernels(home: Path) -> None:
    """As `scripts/setup` leaves them: else every host compiles them when it serves for the first time."""
    with contextlib.suppress(BuildError):
        library = built_library()
        folder = home / ".cache" / "kvasir" / "kernels"
        folder.mkdir(parents=True)
        shutil.copy2(library, folder)


def _for_these(hosts: Hosts) -> dict[str, Any]:
    """The shipped file with the addresses and the key of these hosts, where the project is installed already."""
    text = SHIPPED.read_text()
    for shipped, host in (("10.0.0.10", HEAD), ("10.0.0.11", WORKERS[0]), ("10.0.0.12", WORKERS[1])):
        text = text.replace(shipped, hosts.address(host))
    tree: dict[str, Any] = yaml.safe_load(text)
    tree["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.root / "key")}
    del tree["file_mounts"]["~/kvasir"]
    exports = f"export PATH={search_path()} PYTHONPATH={python_path()}"
    tree["setup_commands"] = [f"grep -qs PYTHONPATH ~/.bashrc || echo '{exports}' >> ~/.bashrc"]
    tree["head_start_ray_commands"] = [
        command.replace("--num-cpus=0", "$(cat ~/offers)") for command in tree["head_start_ray_commands"]
    ]
    # Nobody waits a minute for the end. The inner shell is to read the file: it leaves the quotes in it alone.
    tree["worker_start_ray_commands"] = [
        command.replace("timeout_s=60", "timeout_s=3").replace("ray start ", "ray start \\$(cat ~/offers) ")
        for command in tree["worker_start_ray_commands"]
    ]
    return tree


def wait_until(question: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not question():
        assert time.monotonic() < give_up_at, f"no {what} within {timeout_s:g} s"
        time.sleep(0.2)
