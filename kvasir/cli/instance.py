"""What one `kvasir serve` leaves on the host while it runs, and what it takes away again."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    try:
        (instance.directory / "pid").write_text(str(os.getpid()))
        yield instance
    finally:
        instance.remove()


def remove_dead_instances() -> None:
    """Take away what servers of this user left that were killed before they could."""
    for directory in TEMPORARY.glob("kvasir-*"):
        with contextlib.suppress(OSError, ValueError):
            is_ours = directory.stat().st_uid == os.getuid()
            if is_ours and not Path(f"/proc/{int((directory / 'pid').read_text())}").exists():
                Instance(directory.name.removeprefix("kvasir-")).remove()
