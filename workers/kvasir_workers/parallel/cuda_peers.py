"""What a board needs of CUDA: memory that other processes of the host map, and the time of a sum.

By CUDA's handles for other processes, not through torch's symmetric memory: its rendezvous waits for the others without
a deadline, refuses ranks that see one device each, as Ray's do, and wants groups that torch knows by name.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from kvasir_kernels.one_shot_all_reduce.reference import NUM_PROGRAMS, PeerMemory, peer_memory_bytes
from kvasir_workers.parallel.device_deadline import wait_for_device
from kvasir_workers.parallel.peer_board import PeerBoard
from kvasir_workers.parallel.sum_limit import Sum, SumClock, choose_limit, measure_sums

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Other hosts have another, and containers of one host the same."""

_CHECKED_VALUES = 40_000
"""For all programs of the kernel, some of which go round twice."""

_NUM_CHECKS = 3
"""Both buffers, and one of them again."""


class CudaPeers:
    """One rank's device. by_nccl: the sum to be faster than; deadline_s: for the device to do anything."""

    def __init__(self, num_ranks: int, device: torch.device, deadline_s: float, by_nccl: Sum) -> None:
        self._num_ranks = num_ranks
        self._device = device
        self._deadline_s = deadline_s
        self._by_nccl = by_nccl
        self._own = torch.zeros(peer_memory_bytes(num_ranks), dtype=torch.uint8, device=device)

    def share(self) -> str:
        if torch.version.hip is not None:
            raise RuntimeError("on ROCm a kernel may not see what another device writes meanwhile")
        torch.cuda.synchronize(self._device)  # nobody may write there before it is all zeros
        shared = self._own.untyped_storage()._share_cuda_()  # type: ignore[no-untyped-call]
        _, memory, size, offset, counter, counter_offset, event, _ = shared
        parts = [memory.hex(), size, offset, counter.hex(), counter_offset, event.hex()]
        return json.dumps([_BOOT_ID.read_text(), *parts])

    def open(self, index: int, handles: list[str]) -> PeerBoard:
        mapped = [self._own if rank == index else self._map(handle) for rank, handle in enumerate(handles)]
        addresses = torch.tensor([memory.data_ptr() for memory in mapped], device=self._device)
        turns = torch.zeros(NUM_PROGRAMS, dtype=torch.int64, device=self._device)
        return PeerBoard(PeerMemory(index, addresses, self._own, turns), mapped)

    def _map(self, handle: str) -> Tensor:
        """Another rank's memory, for this rank's device to use: what number its own has plays no part."""
        boot_id, memory, size, offset, counter, counter_offset, event = json.loads(handle)
        if boot_id != _BOOT_ID.read_text():
            raise RuntimeError("the ranks are on several hosts")
        storage = torch.UntypedStorage._new_shared_cuda(
            self._device.index, bytes.fromhex(memory), size, offset, bytes.fromhex(counter), counter_offset,
            bytes.fromhex(event), False,  # its owner has waited until it was ready
        )  # fmt: skip
        return torch.empty(0, dtype=torch.uint8, device=self._device).set_(storage)

    def check(self, board: PeerBoard) -> None:
        for trial in range(_NUM_CHECKS):
            values = torch.full((_CHECKED_VALUES,), float(board.memory.rank + trial), device=self._device)
            board.add_up(values)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._wait(board, event)
            expected = sum(range(self._num_ranks)) + self._num_ranks * trial
            if not bool((values == expected).all()):
                found = f"{values.min().item()} to {values.max().item()}"
                raise RuntimeError(f"sums that should be {expected} are {found}")

    def _wait(self, board: PeerBoard, event: torch.cuda.Event) -> None:
        try:
            wait_for_device(event, self._deadline_s)
        except RuntimeError:
            board.leave()
            raise

    def measure_limit(self, board: PeerBoard) -> int:
        clock = SumClock(self._device, self._deadline_s)
        try:
            return choose_limit(measure_sums(board.add_up, self._by_nccl, clock.seconds))
        except RuntimeError:
            board.leave()
            raise
