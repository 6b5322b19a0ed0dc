"""Files that their maker holds a lock on for as long as it lives: one without is nobody's any more.

Process ids would not tell, since containers that share a folder count their own.
"""

import fcntl
import os
from pathlib import Path


def create_held(path: Path) -> int:
    """A new file, open, and locked before anybody could take it for an abandoned one; closing it lets go."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.link(draft, path)
    except OSError:
        os.close(descriptor)
        raise
    finally:
        os.unlink(draft)
    return descriptor


def is_abandoned(path: Path) -> bool:
    """Whether it is this user's, and its maker has ended; False if that can't be found out."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return os.fstat(descriptor).st_uid == os.geteuid() and not is_held(descriptor)
    finally:
        os.close(descriptor)


def is_held(descriptor: int) -> bool:
    """Whether somebody else holds the file that is open here; True also if that can't be found out.

    It holds it itself from then on, where nobody else did.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
