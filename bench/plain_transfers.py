"""What hand-overs are measured against: the same bytes copied in memory, and through a socket on loopback.

A socket is measured twice: with one buffer on each side that stays in the caches, as iperf does it, and from one large
memory to another, which is what a hand-over has to do.
"""

import multiprocessing
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

import numpy as np
import torch

from kvasir_workers.kv.page_memory import SharedSegment
from kvasir_workers.kv.transfer.sealing import BLOCK_BYTES, KEY_BYTES, TAG_BYTES, PageSeal

CHUNK_BYTES = 2**20
"""Given to the system at a time."""

KEY = bytes(KEY_BYTES)

SocketRoad = Literal["loopback, one buffer", "loopback", "loopback, AES-GCM"]
"""AES-GCM: on both sides, block by block, from the large memory to the large memory."""

ROADS: tuple[SocketRoad, ...] = ("loopback, one buffer", "loopback", "loopback, AES-GCM")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of bringing bytes over: seconds, and the CPU time of the two processes."""

    seconds: float
    writer_cpu_s: float
    reader_cpu_s: float = 0.0


@contextmanager
def beside(target: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Run a function in another process for the time of the block; it ends when it is sent None."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(*arguments, theirs))
    process.start()
    try:
        yield ours
    finally:
        ours.send(None)
        process.join()


def copying_cost(copy: Callable[[], object]) -> Cost:
    started_at, cpu_s = time.perf_counter(), time.process_time()
    copy()
    return Cost(time.perf_counter() - started_at, time.process_time() - cpu_s)


@contextmanager
def plain_copies(num_bytes: int) -> Iterator[dict[str, Callable[[], None]]]:
    """Copies of so many bytes in one piece: between private memories, in huge pages where the system has them, and to
    shared memory, which is in small ones."""
    source, private = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    segment = SharedSegment.create(f"kvasir-bench-{secrets.token_hex(4)}", (1, 1, 1, 1, 1, num_bytes), torch.uint8)
    shared = segment.tensor.numpy().reshape(-1)
    shared.fill(1)  # the first touch of a page costs as much as several copies
    try:
        yield {
            "copy": lambda: np.copyto(private, source),
            "copy to shared memory": lambda: np.copyto(shared, source),
        }
    finally:
        segment.remove()


class RawSockets:
    """Bytes to another process through plain sockets, for num_rounds rounds over each of ROADS."""

    def __init__(self, num_bytes: int, other: Connection) -> None:
        self._memory = memoryview(np.ones(num_bytes, np.uint8))
        self._other = other
        self._port = other.recv()

    def send(self, road: SocketRoad) -> Cost:
        """Each connection brings them once."""
        room, seal = bytearray(BLOCK_BYTES + TAG_BYTES), PageSeal(KEY)
        self._other.send(road)
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            reader_cpu_s = -self._other.recv()
            started_at, cpu_s = time.perf_counter(), time.process_time()
            for part in parts_of(self._memory, road):
                connection.sendall(seal.seal(b"", part, room) if road == "loopback, AES-GCM" else part)
            reader_cpu_s += self._other.recv()
            return Cost(time.perf_counter() - started_at, time.process_time() - cpu_s, reader_cpu_s)


@contextmanager
def raw_sockets(num_bytes: int) -> Iterator[RawSockets]:
    with beside(swallow, num_bytes) as other:
        yield RawSockets(num_bytes, other)


def swallow(num_bytes: int, parent: Connection) -> None:
    """Read num_bytes from each connection that is announced, and tell the CPU time used before and after."""
    memory = memoryview(np.ones(num_bytes, np.uint8))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        parent.send(listener.getsockname()[1])
        for road in iter(parent.recv, None):
            connection, _ = listener.accept()
            with connection:
                parent.send(time.process_time())
                read_all(connection, memory, road)
                parent.send(time.process_time())


def read_all(connection: socket.socket, memory: memoryview, road: SocketRoad) -> None:
    sealed, seal = memoryview(bytearray(BLOCK_BYTES + TAG_BYTES)), PageSeal(KEY)
    for part in parts_of(memory, road):
        if road == "loopback, AES-GCM":
            block = sealed[: len(part) + TAG_BYTES]
            read_whole(connection, block)
            seal.open(b"", block, part)
        else:
            read_whole(connection, part)


def parts_of(memory: memoryview, road: SocketRoad) -> Iterator[memoryview]:
    """Memory that is sent or filled at a time; of one buffer the first part again and again."""
    size = BLOCK_BYTES if road == "loopback, AES-GCM" else CHUNK_BYTES
    for start in range(0, len(memory), size):
        length = min(size, len(memory) - start)
        yield memory[:length] if road == "loopback, one buffer" else memory[start : start + length]


def read_whole(connection: socket.socket, buffer: memoryview) -> None:
    while len(buffer):
        buffer = buffer[connection.recv_into(buffer) :]
