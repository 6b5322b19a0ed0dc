"""What a `kvasir serve` of this host costs, process by process."""

import ipaddress
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rich.table import Table

from kvasir.cli.instance import living_instances
from kvasir.cli.processes import command_of, memory_of, read_processes, tree_of

MIB = 2**20

MARKS = (
    ("kvasir_router", "router"),
    ("gcs_server", "Ray: head"),
    ("raylet/raylet", "Ray: raylet"),
    ("ray::Controller", "controller"),
    ("ray::RankActor", "replica"),
    ("ray::IDLE", "Ray: spare worker"),
    ("log_monitor", "Ray: log monitor"),
    ("monitor.py", "Ray: monitor"),
    ("dashboard/agent", "Ray: agent"),
    ("runtime_env/agent", "Ray: environments"),
    ("dashboard", "Ray: dashboard"),
)
"""What a command line contains, and whose it is: the first that fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessCost:
    """cpu_s: since it began."""

    process_id: int
    role: str
    rss_bytes: int
    pss_bytes: int
    cpu_s: float


class Footprint:
    """Looks at the processes of one server: the first when this is made."""

    def __init__(self, url: str, status: Mapping[str, Any]) -> None:
        """status: what the server says of itself, with the processes of its replicas."""
        self._server = find_server(url)
        self._looked_at = time.monotonic()
        self._costs = self._read(status)

    def _read(self, status: Mapping[str, Any]) -> list[ProcessCost]:
        return costs_of(self._server, replica_processes(status)) if self._server is not None else []

    def look(self, status: Mapping[str, Any]) -> Table | None:
        """What each costs, CPU since the look before; None if the server is not one of this host and user."""
        before, looked_at = self._costs, self._looked_at
        self._costs, self._looked_at = self._read(status), time.monotonic()
        return make_cost_table(before, self._costs, self._looked_at - looked_at) if self._costs else None


def find_server(url: str) -> int | None:
    """The process of the `kvasir serve` of this user that answers there; None if it is another host's, or none's."""
    parts = urlsplit(url)
    if not _is_here(parts.hostname or ""):
        return None
    return next((process_id for process_id, port in living_instances() if port == (parts.port or 80)), None)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def costs_of(server: int, replicas: Mapping[int, str]) -> list[ProcessCost]:
    """Of the server's process and all below it. replicas: names by process id."""
    costs = []
    for process in tree_of(server, read_processes()):
        memory = memory_of(process.process_id)
        if memory is None:
            continue
        role = "kvasir serve" if process.process_id == server else role_of(command_of(process.process_id))
        costs.append(
            ProcessCost(
                process_id=process.process_id,
                role=replicas.get(process.process_id, role),
                rss_bytes=memory.rss_bytes,
                pss_bytes=memory.pss_bytes,
                cpu_s=process.cpu_s,
            )
        )
    return costs


def role_of(command: str) -> str:
    """What a process below `kvasir serve` is there for; of an unknown one, its program."""
    program = command.split(" ")[0].rpartition("/")[2] or "?"
    return next((role for mark, role in MARKS if mark in command), program)


def replica_processes(status: Mapping[str, Any]) -> dict[int, str]:
    """Names of the replicas that an answer of /status tells, by process id."""
    replicas: Iterable[Mapping[str, Any]] = status["replicas"]
    return {replica["info"]["process_id"]: replica["id"] for replica in replicas if replica["info"] is not None}


def make_cost_table(before: Sequence[ProcessCost], after: Sequence[ProcessCost], seconds: float) -> Table:
    """One row per process of the later look, the largest first, and all together; CPU from one look to the other."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(("process", "pid", "resident", "its share", "CPU")):
        table.add_column(column, justify="left" if index == 0 else "right")
    earlier = {cost.process_id: cost.cpu_s for cost in before}
    used_s = {cost.process_id: cost.cpu_s - earlier.get(cost.process_id, 0.0) for cost in after}
    for cost in sorted(after, key=lambda cost: cost.pss_bytes, reverse=True):
        table.add_row(
            cost.role,
            str(cost.process_id),
            _mib(cost.rss_bytes),
            _mib(cost.pss_bytes),
            _percent(used_s[cost.process_id], seconds),
        )
    table.add_row(
        "together", "", "", _mib(sum(cost.pss_bytes for cost in after)), _percent(sum(used_s.values()), seconds)
    )
    return table


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.0f} MiB"


def _percent(cpu_s: float, seconds: float) -> str:
    return f"{100 * cpu_s / seconds:.1f} %" if seconds > 0 else "-"
