"""Bytes of files on their way to a GPU, through a few page-locked buffers that are used in turn.

file --pread--> buffer 0 --copy engine--> device        while one buffer is copied, the next ones are read:
file --pread--> buffer 1 --copy engine--> device        host memory holds no more than the buffers, whatever the
...             buffer 0 again, once its copy is done   size of what passes through
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from kvasir_protocol.errors import CheckpointError

NUM_BUFFERS = 4
BUFFER_BYTES = 32 * 2**20

_NUM_READERS = 4
"""One thread copies from the system's cache at a fraction of what a GPU's link takes."""


@dataclass(frozen=True, slots=True)
class Block:
    """`count` runs of `run_bytes` bytes of a file; the first at `offset`, each `stride` bytes after the one before."""

    offset: int
    run_bytes: int
    stride: int
    count: int

    @property
    def num_bytes(self) -> int:
        return self.run_bytes * self.count

    def pieces(self, num_bytes: int) -> "Iterator[Block]":
        """The same in order, in blocks of at most so many bytes."""
        if self.run_bytes == self.stride or self.count == 1:
            for start in range(0, self.num_bytes, num_bytes):
                size = min(num_bytes, self.num_bytes - start)
                yield Block(self.offset + start, size, size, 1)
            return
        if self.run_bytes > num_bytes:
            for run in range(self.count):
                yield from replace(self, offset=self.offset + run * self.stride, count=1).pieces(num_bytes)
            return
        runs_of_piece = num_bytes // self.run_bytes
        for first in range(0, self.count, runs_of_piece):
            count = min(runs_of_piece, self.count - first)
            yield replace(self, offset=self.offset + first * self.stride, count=count)


class Lane(Protocol):
    """How bytes leave the host."""

    def buffer(self, num_bytes: int) -> Tensor:
        """Host memory that copies can start from: uint8."""
        ...

    def copy(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        """Begin a copy into the device's memory; what is returned waits until the source may be written again."""
        ...


class CudaLane:
    """A stream of its own beside the current one, with which it keeps step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        current = torch.cuda.current_stream(self._device)
        # The target's memory may have been another tensor's, which the current stream still reads.
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        current.wait_stream(self._stream)
        return done.synchronize


class Staging:
    """The buffers. Not thread-safe: one reader at a time, which uses several threads itself."""

    def __init__(self, lane: Lane, num_buffers: int = NUM_BUFFERS, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._lane = lane
        self._buffer_bytes = buffer_bytes
        self._buffers = [lane.buffer(buffer_bytes) for _ in range(num_buffers)]
        self._waits: list[Callable[[], None]] = [_nothing] * num_buffers
        self._next = 0
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="weights")

    def send(self, file: int, block: Block, target: Tensor) -> None:
        """Let the bytes of an open file come to a tensor, uint8, of as many; work on it later finds them there.

        Raises CheckpointError where the file ends before.
        """
        start = 0
        for piece in block.pieces(self._buffer_bytes):
            index, self._next = self._next, (self._next + 1) % len(self._buffers)
            self._waits[index]()
            self._waits[index] = _nothing
            buffer = self._buffers[index][: piece.num_bytes]
            self._read(file, piece, buffer.numpy().data)
            self._waits[index] = self._lane.copy(buffer, target[start : start + piece.num_bytes])
            start += piece.num_bytes

    def _read(self, file: int, block: Block, into: memoryview) -> None:
        share = max(block.run_bytes if block.count > 1 else 1, -(-block.num_bytes // _NUM_READERS))
        parts, start = [], 0
        for part in block.pieces(share):
            parts.append(self._readers.submit(_read_runs, file, part, into[start : start + part.num_bytes]))
            start += part.num_bytes
        for done in parts:
            done.result()

    def close(self) -> None:
        """Wait for all that is on its way."""
        for wait in self._waits:
            wait()
        self._readers.shutdown()


def _nothing() -> None:
    """Of a buffer that nothing is copied from."""


def _read_runs(file: int, block: Block, into: memoryview) -> None:
    for run in range(block.count):
        offset, rest = block.offset + run * block.stride, into[run * block.run_bytes :][: block.run_bytes]
        while rest:
            count = os.preadv(file, [rest], offset)
            if not count:
                raise CheckpointError(f"a file of weights ends at {offset}, before its last tensor: download it again")
            offset, rest = offset + count, rest[count:]
