"""The processes below this one, whoever started them."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphans among our descendants become our children instead of init's, so that none is lost sight of."""


def adopt_orphans() -> None:
    """From now on every descendant stays one, also when its own parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants() -> None:
    """End every process below this one and collect them."""
    while children := _children_of(os.getpid()):
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children_of(process_id: int) -> list[int]:
    files = Path(f"/proc/{process_id}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]
