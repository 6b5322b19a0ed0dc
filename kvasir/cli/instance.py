"""What one `kvasir serve` leaves on the host while it runs, and what it takes away again."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvasir_workers.held_files import create_held, is_abandoned

TEMPORARY = Path("/tmp")
"""Not $TMPDIR: Ray's sockets lie below, and the path of a socket may have 107 characters."""

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Instance:
    """A server's own name, and the folder and the shared-memory segments that go by it."""

    id: str

    @property
    def directory(self) -> Path:
        return TEMPORARY / f"kvasir-{self.id}"

    def note_port(self, port: int) -> None:
        """Tell others on this host which port it answers on (`living_instances`)."""
        (self.directory / "port").write_text(str(port))

    def remove(self) -> None:
        """Remove the folder and every segment. Harmless when they are gone."""
        # The file with the process id last: a removal that is cut short must be recognised by the next server.
        for path in [path for path in self.directory.glob("*") if path.name != "pid"]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        for segment in SHARED_MEMORY.glob(f"kvasir-{self.id}-*"):
            segment.unlink(missing_ok=True)


@contextlib.contextmanager
def new_instance() -> Iterator[Instance]:
    """One with a folder that nobody else can read; all that goes by its name is gone after the block."""
    instance = Instance(secrets.token_hex(3))
    instance.directory.mkdir(mode=0o700)
    with contextlib.ExitStack() as ending:
        ending.callback(instance.remove)
        held = create_held(instance.directory / "pid")
        ending.callback(os.close, held)
        os.write(held, str(os.getpid()).encode())
        yield instance


def living_instances() -> Iterator[tuple[int, int]]:
    """Process and port of each server of this user that has said which port it answers on."""
    for directory, process_id in _instances():
        with contextlib.suppress(OSError, ValueError):
            if _lives(process_id):
                yield process_id, int((directory / "port").read_text())


def remove_dead_instances() -> None:
    """Take away what servers of this user left that were killed before they could.

    One in another container, which shares our folders, has no number here: its file is held.
    """
    for directory, process_id in _instances():
        if not _lives(process_id) and is_abandoned(directory / "pid"):
            with contextlib.suppress(OSError):
                Instance(directory.name.removeprefix("kvasir-")).remove()


def _instances() -> Iterator[tuple[Path, int]]:
    """Folders of this user's servers, and the processes that made them."""
    for directory in TEMPORARY.glob("kvasir-*"):
        with contextlib.suppress(OSError, ValueError):
            if directory.stat().st_uid == os.getuid():
                yield directory, int((directory / "pid").read_text())


def _lives(process_id: int) -> bool:
    return Path(f"/proc/{process_id}").exists()
