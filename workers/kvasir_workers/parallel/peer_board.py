"""Small sums of GPUs of one host, without NCCL: each rank maps the others' memory and reads their numbers there.

The sums themselves are kvasir_kernels/one_shot_all_reduce. Here is how ranks come to share a board. Each step is every
rank's own, and after each all hear how it went at the others: nobody waits for a rank that has given up.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from kvasir_kernels.dispatch import one_shot_all_reduce
from kvasir_kernels.one_shot_all_reduce.reference import PeerMemory, can_add_up
from kvasir_workers.parallel.torch_groups import Store

_log = logging.getLogger(__name__)

T = TypeVar("T")


class PeerBoard:
    """One rank's view. limit_bytes: of a sum that is made here; what is larger is NCCL's."""

    def __init__(self, memory: PeerMemory, mapped: list[Tensor]) -> None:
        """mapped: the memory of each rank, by rank, as long as the board is used."""
        self.memory = memory
        self.limit_bytes = 0
        self._mapped = mapped

    def takes(self, tensor: Tensor) -> bool:
        """The same at all ranks, whose tensors are alike."""
        return tensor.nbytes <= self.limit_bytes and can_add_up(tensor)

    def add_up(self, tensor: Tensor) -> None:
        """The sum over all ranks, in place, on the current stream; nobody but the device waits."""
        one_shot_all_reduce(tensor, self.memory)

    def leave(self) -> None:
        """Let the sums end in which this rank's device still waits for others."""
        with torch.cuda.stream(torch.cuda.Stream(self.memory.own.device)):  # type: ignore[no-untyped-call]
            self.memory.release()


class PeerDevice(Protocol):
    """What a rank's device can do towards a board. Each raises RuntimeError or OSError if it can't."""

    def share(self) -> str:
        """What another process finds this rank's memory by."""
        ...

    def open(self, index: int, handles: list[str]) -> PeerBoard:
        """A board over the memory of all ranks, of which this is number index."""
        ...

    def check(self, board: PeerBoard) -> None:
        """Make some sums, together with all other ranks. Raises RuntimeError if they are not right, or too late."""
        ...

    def measure_limit(self, board: PeerBoard) -> int:
        """Up to how many bytes sums are made faster here than by NCCL, together with all other ranks; 0 for none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardSeat:
    """One of the ranks that are to share a board. name: of what they say about it, in the store of their gang."""

    name: str
    index: int
    num_ranks: int
    store: Store

    def hear(self, what: str, word: str) -> list[str]:
        """Say something, and hear what each rank says of the same, in their order."""
        self.store.set(f"{self.name}/{what}/{self.index}", word)
        return [self.store.get(f"{self.name}/{what}/{rank}").decode() for rank in range(self.num_ranks)]

    def together(self, what: str, act: Callable[[], T]) -> T:
        """What act gives. Raises NoBoard at all ranks if it fails at one of them."""
        found: list[T] = []
        failure = ""
        try:
            found.append(act())
        except (RuntimeError, OSError) as error:
            failure = str(error).partition("\n")[0] or type(error).__name__
        failures = [f"tensor rank {rank}: {word}" for rank, word in enumerate(self.hear(what, failure)) if word]
        if failures:
            raise NoBoard(f"no {what} ({'; '.join(failures)})")
        return found[0]


class NoBoard(Exception):
    """One of the ranks can't do what a board needs; the text says which, and why."""


def open_peer_board(seat: BoardSeat, device: PeerDevice) -> PeerBoard | None:
    """A board for ranks that have all come, with the limit that the first of them measured; None at all of them if it
    can't be had or is never faster."""
    try:
        handle = seat.together("shared memory", device.share)
        handles = seat.hear("handles", handle)
        board = seat.together("access to each other's memory", lambda: device.open(seat.index, handles))
        seat.together("right sum in time", lambda: device.check(board))
        limit = seat.together("measured sum", lambda: device.measure_limit(board))
    except NoBoard as refusal:
        if seat.index == 0:
            _log.warning("all sums of this gang's GPUs are NCCL's: %s", refusal)
        return None
    board.limit_bytes = int(seat.hear("limit", str(limit))[0])
    if seat.index == 0:
        _log.info("sums of up to %d bytes are made without NCCL", board.limit_bytes)
    return board if board.limit_bytes else None
