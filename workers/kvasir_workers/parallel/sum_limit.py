"""Up to which size the ranks of a host make a sum by themselves: up to where that is faster than NCCL, as measured."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kvasir_kernels.one_shot_all_reduce.reference import BUFFER_BYTES
from kvasir_workers.parallel.device_deadline import wait_for_device

Sum = Callable[[Tensor], object]
"""Makes a tensor the sum over all ranks, in place, on the current stream."""

SIZES = tuple(2**power for power in range(12, BUFFER_BYTES.bit_length()))
"""In bytes, from 4 KiB: one token of a small model."""

_NUM_SUMS = 20
"""In one graph, so that no launch is measured."""


def choose_limit(seconds: Mapping[int, tuple[float, float]]) -> int:
    """The largest size up to which the first of two ways was always the faster; 0 if it was at none."""
    limit = 0
    for size in sorted(seconds):
        ours, other = seconds[size]
        if ours >= other:
            break
        limit = size
    return limit


def measure_sums(ours: Sum, other: Sum, clock: Callable[[Sum, int], float]) -> dict[int, tuple[float, float]]:
    """Seconds of both at each size. clock: seconds of one sum of so many bytes; every rank times the same at once."""
    return {size: (clock(ours, size), clock(other, size)) for size in SIZES}


class SumClock:
    """Times sums on a GPU as decode steps make them: from a graph, with nothing of the host between."""

    def __init__(self, device: torch.device, deadline_s: float) -> None:
        self._device = device
        self._deadline_s = deadline_s
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def seconds(self, add_up: Sum, num_bytes: int) -> float:
        """Raises RuntimeError if it can't be recorded, or another rank does not come in time."""
        numbers = torch.zeros(num_bytes // 2, dtype=torch.bfloat16, device=self._device)
        with torch.cuda.stream(self._stream):
            add_up(numbers)
        self._wait(self._mark())  # capturing begins by waiting for the device, without a deadline
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            for _ in range(_NUM_SUMS):
                add_up(numbers)
        with torch.cuda.stream(self._stream):
            graph.replay()
        started = self._mark()
        with torch.cuda.stream(self._stream):
            graph.replay()
        ended = self._mark()
        self._wait(ended)
        return float(started.elapsed_time(ended)) / 1e3 / _NUM_SUMS

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def _wait(self, event: torch.cuda.Event) -> None:
        wait_for_device(event, self._deadline_s)
