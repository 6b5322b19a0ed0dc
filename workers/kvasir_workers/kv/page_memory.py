"""Memory that processes of one host share: that of pages, and the boards of ranks (`parallel/shared_board.py`).

A shared segment is a file in /dev/shm whose name ends with SUFFIX, so that what a killed process leaves behind can be
found and removed: its maker holds it (`held_files.py`). (The standard library's SharedMemory would unlink it when any
reader exits.)
"""

import errno
import logging
import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from kvasir_protocol.errors import OutOfMemory
from kvasir_workers.held_files import create_held, is_abandoned

_log = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")

SUFFIX = ".pages"
"""What the names of segments end with, and of nothing else that lies there."""

PageShape = tuple[int, int, int, int, int, int]
"""[L, 2, N, P, K, D]: layers, keys and values, pages, tokens per page, key/value heads, head size."""


class SharedSegment:
    """A named piece of shared memory as one tensor. The creator removes the name; a reader only maps it.

    lock: an open file that keeps others from taking the segment for an abandoned one; None for a reader.
    """

    def __init__(self, name: str, tensor: Tensor, *, is_owner: bool, lock: int | None = None) -> None:
        self.name = name
        self.tensor = tensor
        self._is_owner = is_owner
        self._lock = lock

    @property
    def is_held(self) -> bool:
        """By this process, until it ends or the segment is removed."""
        return self._lock is not None

    @classmethod
    def create(cls, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> "SharedSegment":
        """A new zeroed segment, its memory set aside now. Raises OutOfMemory if /dev/shm is too small."""
        size = torch.Size(shape).numel() * dtype.itemsize
        descriptor = create_held(SHARED_MEMORY / name)
        try:
            os.posix_fallocate(descriptor, 0, size)
            tensor = _map(descriptor, shape, dtype)
        except OSError as error:
            os.unlink(SHARED_MEMORY / name)
            os.close(descriptor)
            if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                raise OutOfMemory(
                    f"/dev/shm has no room for {size / 2**20:.0f} MiB of pages; lower the KV cache size or enlarge it"
                ) from error
            raise
        return cls(name, tensor, is_owner=True, lock=descriptor)

    @classmethod
    def create_if_room(
        cls, name: str, shape: tuple[int, ...], dtype: torch.dtype, otherwise: str
    ) -> "SharedSegment | None":
        """None where /dev/shm is too small, as it often is in containers. otherwise: what that costs, for the log."""
        try:
            return cls.create(name, shape, dtype)
        except OutOfMemory as error:
            _log.warning("%s; until then %s", error, otherwise)
            return None

    @classmethod
    def attach(cls, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> "SharedSegment":
        """Another process's segment. Raises FileNotFoundError on another host, ValueError if the size differs."""
        size = torch.Size(shape).numel() * dtype.itemsize
        descriptor = os.open(SHARED_MEMORY / Path(name).name, os.O_RDWR)
        try:
            if os.fstat(descriptor).st_size != size:
                raise ValueError(f"segment {name} has {os.fstat(descriptor).st_size} bytes, expected {size}")
            return cls(name, _map(descriptor, shape, dtype), is_owner=False)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Take the name away; the memory goes when the last process lets go of it."""
        if self._is_owner:
            (SHARED_MEMORY / self.name).unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_abandoned_segments(folder: Path = SHARED_MEMORY) -> list[str]:
    """Take away this user's segments whose makers were killed before they could; their names."""
    abandoned = [path for path in folder.glob(f"*{SUFFIX}") if is_abandoned(path)]
    for path in abandoned:
        path.unlink(missing_ok=True)
    return [path.name for path in abandoned]


def _map(descriptor: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.frombuffer(mmap.mmap(descriptor, size), dtype=dtype).view(shape)
