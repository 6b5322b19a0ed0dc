"""What this process holds of the machine's memory."""

import resource
from pathlib import Path


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Physical memory that this process has now, as the system tells it in statm.

    0 if it does not, as while this process may open no more files: nothing ends for want of a figure.
    """
    try:
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
