"""Which process it is: a number alone is given to another one sooner or later."""

from pathlib import Path

_STATE, _STARTED_AT = 0, 19
"""Places in /proc/PID/stat after the name (proc(5) counts them from 3 on)."""


def process_start(process_id: int) -> int | None:
    """When a process began, in the system's ticks since it booted; None if none of this number can still write.

    One that has ended waits for its parent to collect it, maybe for ever.
    """
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[_STATE] in ("Z", "X") else int(fields[_STARTED_AT])
