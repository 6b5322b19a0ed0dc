"""What a server and everybody else take of this host."""

import os
from dataclasses import dataclass

from kvasir.cli.processes import PROC, memory_of, read_processes, tree_of


def cpu_seconds_of_tree(root: int) -> float:
    """CPU time of a process, all below it, and the children that these have waited for."""
    return sum(process.cpu_s + process.children_cpu_s for process in tree_of(root, read_processes()))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Physical memory of several processes; what they share counts once. shared_memory_bytes: segments, of all."""

    num_bytes: int
    shared_memory_bytes: int


def memory_of_tree(root: int) -> MemoryUse:
    """Of a process and all below it."""
    memories = [memory_of(process.process_id) for process in tree_of(root, read_processes())]
    return MemoryUse(
        num_bytes=sum(memory.pss_bytes for memory in memories if memory is not None),
        shared_memory_bytes=sum(memory.shared_memory_bytes for memory in memories if memory is not None),
    )


def busy_seconds_of_host() -> float:
    """CPU time that anybody took, since the host started."""
    user, nice, system, _, _, interrupts, soft, stolen = map(int, (PROC / "stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
