"""A file of `ray up`, and whether its hosts can be reached as it says."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvasir_cluster.doctor import Finding
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.yaml_lines import Document, read_document

SSH_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RayFile:
    """A file with provider local. num_wanted: of workers, as min_workers says."""

    path: Path
    hosts: tuple[str, ...]
    user: str
    key: Path | None
    num_wanted: int


def read_ray_file(path: Path) -> RayFile:
    """Raises ConfigError for a file that has no list of hosts."""
    document = read_document(path)
    provider = _section(document, "provider")
    if provider.get("type") != "local":
        raise ConfigError(
            f"{document.place('provider')}: only hosts of `provider: {{type: local}}` are known before `ray up`; "
            "when the cluster is up, run `kvasir doctor` on its head"
        )
    head, workers = provider.get("head_ip"), provider.get("worker_ips")
    if not isinstance(head, str) or not isinstance(workers, list):
        raise ConfigError(f"{document.place('provider')}: provider needs head_ip and a list of worker_ips")
    auth = _section(document, "auth")
    key = auth.get("ssh_private_key")
    tree = document.tree if isinstance(document.tree, dict) else {}
    return RayFile(
        path=path,
        hosts=(head, *map(str, workers)),
        user=str(auth.get("ssh_user", "root")),
        key=Path(str(key)).expanduser() if key is not None else None,
        num_wanted=int(tree.get("min_workers", len(workers))),
    )


def _section(document: Document, name: str) -> dict[str, object]:
    section = document.tree.get(name) if isinstance(document.tree, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(f"{document.path}: {name} is missing; is it a file of `ray up`?")
    return section


def judge_ray_file(file: RayFile) -> Iterator[Finding]:
    """What can be said without asking a host."""
    num_listed = len(file.hosts) - 1
    if file.num_wanted != num_listed:
        yield Finding(
            what=f"{file.path} lists {num_listed} workers and starts {file.num_wanted}",
            fix=f"set min_workers and max_workers to {num_listed}",
        )
    if file.key is not None and not file.key.is_file():
        yield Finding(what=f"no key {file.key}", fix="ssh-keygen -t ed25519, and ssh-copy-id to every host")


def check_ssh(file: RayFile) -> Iterator[Finding]:
    """Log in to every host, one after the other."""
    for host in file.hosts:
        command = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", f"ConnectTimeout={SSH_S}"]
        command += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        command += ["-i", str(file.key)] if file.key is not None else []
        command += ["-l", file.user, "--", host, "command -v rsync >/dev/null && echo rsync"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=2 * SSH_S)
        except FileNotFoundError:
            yield Finding(what="there is no ssh here", fix="install the OpenSSH client")
            return
        except subprocess.TimeoutExpired:
            yield judge_login(host, file.user, 255, "Connection timed out")
            continue
        yield judge_login(host, file.user, done.returncode, done.stdout + done.stderr)


def judge_login(host: str, user: str, code: int, said: str) -> Finding:
    """What a login's exit code and words mean. Pure."""
    reason = said.strip().splitlines()[-1] if said.strip() else f"exit code {code}"
    if code == 0 and "rsync" in said:
        return Finding(what=f"ssh to {user}@{host} works, and rsync is there")
    if code != 255:
        return Finding(what=f"ssh to {user}@{host} works, but it has no rsync", fix=f"install rsync on {host}")
    what = f"no ssh to {user}@{host}: {reason}"
    if "Permission denied" in reason:
        return Finding(what=what, fix=f"put the public key into {user}'s ~/.ssh/authorized_keys there")
    if "refused" in reason:
        return Finding(what=what, fix=f"start sshd on {host}, on port 22")
    return Finding(what=what, fix=f"see that {host} is up, and that this host may reach its port 22")
