"""Which process it is: a number alone is given to another one sooner or later."""

import os
from collections.abc import Callable
from pathlib import Path

_STATE, _STARTED_AT = 0, 19
"""Places in /proc/PID/stat after the name (proc(5) counts them from 3 on)."""


def process_start(process_id: int) -> int | None:
    """When a process began, in the system's ticks since it booted; None if none of this number can still write.

    One that has ended waits for its parent to collect it, maybe for ever. Raises OSError if it can't be found out now:
    that there are too many open files is no proof of a death.
    """
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[_STATE] in ("Z", "X") else int(fields[_STARTED_AT])


def own_start() -> int:
    """When this process began; 0, by which nobody finds it, if that can't be found out."""
    try:
        return process_start(os.getpid()) or 0
    except OSError:
        return 0


def is_running(process_id: int, start: int, look_up: Callable[[int], int | None] = process_start) -> bool | None:
    """Whether this very process can still write; None if that can't be found out now."""
    try:
        return look_up(process_id) == start
    except OSError:
        return None
