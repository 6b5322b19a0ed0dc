"""Processes of this host, as /proc tells them."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """cpu_s: CPU time that it took; children_cpu_s: that of the children it has waited for."""

    process_id: int
    parent_id: int
    cpu_s: float
    children_cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """rss_bytes: physical memory. pss_bytes: the same, where what several processes share is divided among them;
    shared_memory_bytes: of these, segments of shared memory."""

    rss_bytes: int
    pss_bytes: int
    shared_memory_bytes: int


def read_processes(proc: Path = PROC) -> dict[int, Process]:
    """All that live, by their ids."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    found = {}
    for path in proc.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            process_id, _, rest = path.read_text().partition(" (")
            # The name may hold anything, brackets as well.
            fields = rest.rpartition(") ")[2].split()
            user, system, children_user, children_system = (int(field) * tick_s for field in fields[11:15])
            found[int(process_id)] = Process(
                process_id=int(process_id),
                parent_id=int(fields[1]),
                cpu_s=user + system,
                children_cpu_s=children_user + children_system,
            )
    return found


def tree_of(root: int, processes: Mapping[int, Process]) -> list[Process]:
    """A process and all below it; [] if it is gone."""
    return [process for process in processes.values() if _is_below(process.process_id, root, processes)]


def _is_below(process_id: int, root: int, processes: Mapping[int, Process]) -> bool:
    while process_id in processes and process_id != root:
        process_id = processes[process_id].parent_id
    return process_id == root and root in processes


def command_of(process_id: int, proc: Path = PROC) -> str:
    """Its command line in one string, "" if it is gone."""
    try:
        return (proc / str(process_id) / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def memory_of(process_id: int, proc: Path = PROC) -> Memory | None:
    """None if it is gone, or another's."""
    try:
        lines = (proc / str(process_id) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    sizes = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
    if "Pss" not in sizes:
        return None
    return Memory(rss_bytes=sizes["Rss"], pss_bytes=sizes["Pss"], shared_memory_bytes=sizes.get("Pss_Shmem", 0))
