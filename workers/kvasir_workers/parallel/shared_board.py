"""Small sums, broadcasts and gathers of ranks on one host, through memory that they share.

    rank 0:  process  left | wrote | read | buffer | buffer
    rank 1:  process  left | wrote | read | buffer | buffer
    ...

Each operation has a number. A rank writes its part of operation n to its buffer n % 2, says so in `wrote`, waits for
those whose part it needs, and says in `read` that it needs theirs no more: before n + 2 nobody overwrites them.
gloo needs several wake-ups of threads of its own for each (docs/parallelism.md has figures).
"""

import ctypes
import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Tensor

from kvasir_protocol.errors import OutOfMemory
from kvasir_workers.kv.page_memory import SUFFIX, SharedSegment
from kvasir_workers.kv.transfer.process_identity import is_running, own_start
from kvasir_workers.parallel.futex import has_futex, wait_while, wake_all
from kvasir_workers.parallel.torch_groups import Store

BUFFER_BYTES = 2**20
"""Of one rank's part: the hidden states of 256 tokens of 1024 float32. Larger ones go over gloo."""

_HEAD_BYTES = 256
RANK_BYTES = _HEAD_BYTES + 2 * BUFFER_BYTES
_LOOK_S = 0.2
"""How often those who wait look whether the other is still alive, which takes longer than a small sum."""

_NUM_NUMBERS = 2**32
_LOOKS = 50
"""At the word, before sleeping: some microseconds, less than it costs to be woken."""


class _Head(ctypes.Structure):
    """Who it is, and whether it has gone."""

    _fields_ = (
        ("process_start", ctypes.c_uint64),
        ("process_id", ctypes.c_uint32),
        ("has_left", ctypes.c_uint32),
    )


class _Seat:
    """One rank's part of the memory. Words have a cache line each, since others look at them."""

    def __init__(self, memory: Tensor, rank: int) -> None:
        """memory: [RANK_BYTES], uint8."""
        self.rank = rank
        words = memory.numpy().data
        self.head = _Head.from_buffer(words)
        self.wrote = ctypes.c_uint32.from_buffer(words, 64)
        self.read = ctypes.c_uint32.from_buffer(words, 128)
        parts = memory[_HEAD_BYTES:]
        self._buffers = parts[:BUFFER_BYTES], parts[BUFFER_BYTES:]
        self._parts = list(self._buffers)

    def sit_down(self) -> None:
        self.head.process_id = os.getpid()
        self.head.process_start = own_start()

    def part(self, number: int, like: Tensor) -> Tensor:
        """Of operation `number`. Most are like the ones before, and to make a view takes longer than to add one up."""
        turn = number % 2
        part = self._parts[turn]
        if part.shape != like.shape or part.dtype != like.dtype:
            with torch.inference_mode(False):  # else it could be written in that mode only
                part = self._buffers[turn][: like.nbytes].view(like.dtype).view(like.shape)
            self._parts[turn] = part
        return part

    def is_seen(self) -> bool:
        """Whether its end would be seen from here."""
        return bool(is_running(self.head.process_id, self.head.process_start))

    def has_left(self) -> bool:
        return bool(self.head.has_left)

    def has_died(self) -> bool:
        return is_running(self.head.process_id, self.head.process_start) is False


class SharedBoard:
    """One rank's view. index: of this rank among those of the board. Raises RuntimeError when one does not come."""

    def __init__(self, memory: Tensor, index: int, deadline_s: float) -> None:
        """memory: [number of ranks, RANK_BYTES], uint8, zeros before the first rank has come."""
        self._deadline_s = deadline_s
        self._number = 0
        self._seats = [_Seat(part, rank) for rank, part in enumerate(memory)]
        self._first, self._own = self._seats[0], self._seats[index]
        self._others = [seat for seat in self._seats if seat is not self._own]
        self._own.sit_down()

    @staticmethod
    def takes(tensor: Tensor) -> bool:
        return tensor.nbytes <= BUFFER_BYTES and tensor.is_contiguous()

    def sees_all(self) -> bool:
        """Whether the death of any other would be seen: not from another process namespace."""
        return all(seat.is_seen() for seat in self._others)

    def add_up(self, tensor: Tensor) -> None:
        """The sum over all ranks, in place: added in their order, so that all have the same bits."""
        self._begin()
        self._write(tensor)
        self._await_parts(self._others)
        first, second, *rest = (seat.part(self._number, tensor) for seat in self._seats)
        torch.add(first, second, out=tensor)
        for part in rest:
            tensor.add_(part)
        self._end()

    def spread(self, tensor: Tensor) -> None:
        """What the first rank has there, in place."""
        self._begin()
        if self._own is self._first:
            self._write(tensor)
        else:
            self._await_parts([self._first])
            tensor.copy_(self._first.part(self._number, tensor))
        self._end()

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """At the first rank what each has there, nothing at the others."""
        self._begin()
        self._write(tensor)
        parts = []
        if self._own is self._first:
            self._await_parts(self._others)
            parts = [seat.part(self._number, tensor).clone() for seat in self._seats]
        self._end()
        return parts

    def leave(self) -> None:
        """Tell those who wait for this rank."""
        self._own.head.has_left = 1
        wake_all(self._own.wrote)
        wake_all(self._own.read)

    def _begin(self) -> None:
        """Wait until nobody needs what lies in this turn's buffer."""
        self._number = (self._number + 1) % _NUM_NUMBERS
        for seat in self._others:
            self._wait(seat, seat.read, (self._number - 2) % _NUM_NUMBERS)

    def _write(self, tensor: Tensor) -> None:
        self._own.part(self._number, tensor).copy_(tensor)
        self._own.wrote.value = self._number
        wake_all(self._own.wrote)

    def _await_parts(self, seats: Iterable[_Seat]) -> None:
        for seat in seats:
            self._wait(seat, seat.wrote, self._number)

    def _end(self) -> None:
        self._own.read.value = self._number
        wake_all(self._own.read)

    def _wait(self, seat: _Seat, word: ctypes.c_uint32, number: int) -> None:
        """Until the rank has come so far."""
        for _ in range(_LOOKS):
            if _is_reached(word.value, number):
                return
        began_at = time.monotonic()
        while True:
            waited_s = time.monotonic() - began_at
            is_gone = seat.has_left() or (waited_s >= _LOOK_S and seat.has_died())
            if _is_reached(value := word.value, number):  # looked at last: what it wrote before it left counts
                return
            if is_gone:
                raise RuntimeError(f"tensor rank {seat.rank} has left")
            if waited_s >= self._deadline_s:
                raise RuntimeError(f"tensor rank {seat.rank} did not come")
            wait_while(word, value, min(_LOOK_S, self._deadline_s))


def _is_reached(value: int, number: int) -> bool:
    """Numbers go round."""
    return (value - number) % _NUM_NUMBERS < _NUM_NUMBERS // 2


def open_board(name: str, index: int, num_ranks: int, store: Store, deadline_s: float) -> SharedBoard | None:
    """A board for ranks that have all come; None at all of them if one does not see the memory or the
    others, as on another host or in another container.

    name: of this board in the store.
    """
    shape = num_ranks, RANK_BYTES
    made = _create(shape) if index == 0 else None
    try:
        if index == 0:
            store.set(name, made.name if made else "")
        found = made or _attach(store.get(name).decode(), shape)
        board = SharedBoard(found.tensor, index, deadline_s) if found else None
        all_sit = _all_agree(f"{name}/sits", index, num_ranks, store, agrees=board is not None)
    finally:
        if made is not None:
            made.remove()
    sees_all = board is not None and all_sit and board.sees_all()
    return board if _all_agree(f"{name}/sees", index, num_ranks, store, agrees=sees_all) else None


def _all_agree(question: str, index: int, num_ranks: int, store: Store, *, agrees: bool) -> bool:
    """Answer, and hear what all the others answer."""
    store.set(f"{question}/{index}", "yes" if agrees else "no")
    return all(store.get(f"{question}/{rank}") == b"yes" for rank in range(num_ranks))


def _create(shape: tuple[int, int]) -> SharedSegment | None:
    if has_futex():
        with suppress(OSError, OutOfMemory):
            return SharedSegment.create(f"kvasir-board-{secrets.token_hex(8)}{SUFFIX}", shape, torch.uint8)
    return None


def _attach(name: str, shape: tuple[int, int]) -> SharedSegment | None:
    if name and has_futex():
        with suppress(OSError, ValueError):
            return SharedSegment.attach(name, shape, torch.uint8)
    return None
