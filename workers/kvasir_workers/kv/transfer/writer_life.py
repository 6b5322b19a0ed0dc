"""Whether a writer in another process can still write into pages here. What can't be found out is no death.

Its number tells where both sides count processes alike. Containers that share memory may not: there a file of its own
tells, which it holds (`held_files.py`), since the system lets go of that with the writer's last thread and not before.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvasir_protocol.messages import BeginPush
from kvasir_workers.held_files import is_held
from kvasir_workers.kv.page_memory import SHARED_MEMORY
from kvasir_workers.kv.transfer.process_identity import is_running


class WriterLife(Protocol):
    """A writer that lived when it began."""

    def has_ended(self) -> bool:
        """Whether that is proven."""
        ...

    def close(self) -> None:
        """Nobody asks any more."""
        ...


def life_of(message: BeginPush, process_start: Callable[[int], int | None]) -> WriterLife | None:
    """Of who writes into shared memory; None where its death could not be told from here.

    Then its word alone counts if it holds no file; else it has ended, or lies.
    """
    if is_running(message.process_id, message.process_start, process_start):
        return SeenProcess(message.process_id, message.process_start, process_start)
    return HeldFile.find(message.held_file) if message.held_file else None


@dataclass(frozen=True, slots=True)
class SeenProcess:
    """By its number and when it began."""

    process_id: int
    start: int
    process_start: Callable[[int], int | None]

    def has_ended(self) -> bool:
        return is_running(self.process_id, self.start, self.process_start) is False

    def close(self) -> None:
        """It keeps nothing open."""


class HeldFile:
    """By a file in shared memory. It stays open: its name may be taken away, or given to another."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def find(cls, name: str) -> "HeldFile | None":
        """None if there is none that somebody holds."""
        try:
            found = cls(os.open(SHARED_MEMORY / Path(name).name, os.O_RDWR | os.O_NOFOLLOW))
        except (OSError, ValueError):  # the latter for a name that no file can have: it is another's word
            return None
        if found.has_ended():
            found.close()
            return None
        return found

    def has_ended(self) -> bool:
        return not is_held(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)
