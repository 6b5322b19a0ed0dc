"""Hosts on one machine, as `ray up` finds them: each with an address, processes, /tmp, /dev/shm and home of its own.

A host is a set of Linux namespaces (network, processes, mounts, name, IPC) that hangs on a bridge. The bridge has a
namespace of its own, so that nothing of it can be reached from outside. Needs root, iproute2 and util-linux; an sshd
on each host needs OpenSSH's server.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

NETWORK = "10.79.0"
FIRST_ADDRESS = 10

START_S = 10.0

INIT = """
set -e
hostname "$1"; shift
home=$1; shift
for kept in "$@"; do mkdir -p "$home/kept$kept"; mount --bind "$kept" "$home/kept$kept"; done
mount --bind "$home/tmp" /tmp
mount --bind "$home/run" /run
mount --bind "$home/passwd" /etc/passwd
mount --bind "$home/hosts" /etc/hosts
mount -t tmpfs -o size=2g shm /dev/shm
for kept in "$@"; do mkdir -p "$kept"; mount --bind "$home/kept$kept" "$kept"; done
touch "$home/ready"
while :; do sleep 3600 & wait $! || :; done
"""
"""The first process of a host. What is kept lies below /tmp, and would be out of sight behind the host's own."""

SSHD = """\
HostKey {home}/hostkey
AuthorizedKeysFile {root}/key.pub
PidFile {home}/run/sshd.pid
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
MaxStartups 50
"""

PASSWD = """\
root:x:0:0:root:{home}:/bin/bash
sshd:x:101:65534::/run/sshd:/usr/sbin/nologin
"""

OUR_OWN = ("unshare ", "bash -c \nset -e", "sleep 3600", "/usr/sbin/sshd", "sshd")
"""How the command lines of a host's init and sshd begin."""


def why_not() -> str | None:
    """Why this machine can't have such hosts; None if it can."""
    if os.geteuid() != 0:
        return "namespaces of hosts need root"
    missing = [name for name in ("ip", "unshare", "nsenter", "sshd", "ssh", "ssh-keygen", "rsync") if not _find(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    trial = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"no namespaces here: {trial.stderr.strip()}" if trial.returncode else None


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Hosts:
    """Hosts h0, h1 … that know each other by name. Host 0 is where the operator sits; the others run an sshd."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self._tag = f"kv{os.getpid()}-"
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []

    def address(self, index: int) -> str:
        return f"{NETWORK}.{FIRST_ADDRESS + index}"

    def home(self, index: int) -> Path:
        return self.root / f"h{index}"

    def start(self) -> None:
        _do("ip", "netns", "add", f"{self._tag}switch")
        self._in_switch("link", "set", "lo", "up")
        self._in_switch("link", "add", "bridge", "type", "bridge")
        self._in_switch("link", "set", "bridge", "up")
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.root / "key"))
        for index in range(self._count):
            self._connect(index)
            self._boot(index)
        for index in range(1, self._count):
            self._start_sshd(index)

    def _in_switch(self, *words: str) -> None:
        _do("ip", "-n", f"{self._tag}switch", *words)

    def _connect(self, index: int) -> None:
        name = f"{self._tag}{index}"
        _do("ip", "netns", "add", name)
        self._in_switch("link", "add", f"port{index}", "type", "veth", "peer", "name", "eth0", "netns", name)
        self._in_switch("link", "set", f"port{index}", "master", "bridge", "up")
        _do("ip", "-n", name, "link", "set", "lo", "up")
        _do("ip", "-n", name, "addr", "add", f"{self.address(index)}/24", "dev", "eth0")
        _do("ip", "-n", name, "link", "set", "eth0", "up")

    def _boot(self, index: int) -> None:
        home = self.home(index)
        for folder in ("tmp", "run/sshd", ".ssh"):
            (home / folder).mkdir(parents=True)
        (home / "tmp").chmod(0o1777)
        (home / "passwd").write_text(PASSWD.format(home=home))
        names = [f"{self.address(other)} h{other}" for other in range(self._count)]
        (home / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        unshare = ["unshare", "--uts", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        script = ["bash", "-c", INIT, "init", f"h{index}", str(home), *_kept()]
        with (home / "init.log").open("wb") as log:
            words = ["ip", "netns", "exec", f"{self._tag}{index}", *unshare, *script]
            self._processes.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        give_up_at = time.monotonic() + START_S
        while not (home / "ready").exists():
            assert time.monotonic() < give_up_at, (home / "init.log").read_text()
            time.sleep(0.01)

    def _start_sshd(self, index: int) -> None:
        home = self.home(index)
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "hostkey"))
        (home / "sshd_config").write_text(SSHD.format(home=home, root=self.root))
        words = ("/usr/sbin/sshd", "-f", str(home / "sshd_config"), "-E", str(home / "sshd.log"))
        self.run(index, *words).check_returncode()

    def command(self, index: int, *words: str) -> list[str]:
        """What runs words on a host."""
        unshare = self._processes[index].pid
        (init,) = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
        variables = [f"HOME={self.home(index)}", f"PYTHONPATH={python_path()}", f"PATH={search_path()}"]
        return ["nsenter", "-t", init, "-n", "-u", "-m", "-p", "-i", "--", "env", "-i", *variables, *words]

    def run(self, index: int, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run words on a host, with output as text."""
        with tempfile.TemporaryFile("w+") as output:
            # A file and not a pipe: daemons that words leave behind would hold a pipe open.
            done = subprocess.run(
                self.command(index, *words),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=timeout_s,
            )  # fmt: skip
            output.seek(0)
            return subprocess.CompletedProcess(words, done.returncode, output.read())

    def processes(self, index: int) -> list[str]:
        """Id and command line of all that runs on a host, but for its own init and sshd."""
        found = []
        for process_id in _do("ip", "netns", "pids", f"{self._tag}{index}").split():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{process_id}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if line and not line.startswith(OUR_OWN):
                    found.append(f"{process_id} {line}")
        return found

    def stop(self) -> None:
        """Power off: nothing of the hosts is left."""
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()
        for name in _do("ip", "netns", "list").splitlines():
            if name.startswith(self._tag):
                _do("ip", "netns", "del", name.split()[0])


@contextlib.contextmanager
def running_hosts(count: int) -> Iterator[Hosts]:
    """So many hosts for the block."""
    with tempfile.TemporaryDirectory(prefix="kvasir-hosts-", dir="/var/tmp") as root:
        hosts = Hosts(Path(root), count)
        try:
            hosts.start()
            yield hosts
        finally:
            hosts.stop()


def python_path() -> str:
    """The repository's packages, so that hosts run what is tested here and not what is installed."""
    folders = ("", "protocol", "kernels", "workers", "router", "cluster")
    return ":".join(str(REPOSITORY / folder) for folder in folders)


def search_path() -> str:
    return f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def _kept() -> list[str]:
    """Folders below /tmp that hosts must see."""
    return [path for path in dict.fromkeys((str(REPOSITORY), sys.prefix)) if path.startswith("/tmp/")]


def _do(*words: str) -> str:
    done = subprocess.run(_resolved(words), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def _resolved(words: Sequence[str]) -> list[str]:
    return [_find(words[0]) or words[0], *words[1:]]
