"""Seconds of a computation on the device, without what the host does to launch it."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

Work = Callable[[], object]

_NUM_RUNS = 20
_FLUSHED_BYTES = 256 * 2**20
"""Written before each run: more than any cache holds."""


class Clock:
    """On a GPU a computation is captured once and replayed; on a CPU, where only the paths are tried, called twice."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flushed: Tensor | None = None
        if device.type == "cuda":
            self._flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=device)

    def seconds(self, work: Work) -> float:
        """The median of its runs; what it computes at first (work of one step, compilation) is not counted."""
        work()
        if self._flushed is None:
            started = time.perf_counter()
            work()
            return time.perf_counter() - started
        replay = _captured(work)
        times = []
        for _ in range(_NUM_RUNS):
            start, end = _event(), _event()
            self._flushed.zero_()
            start.record()
            replay()
            end.record()
            end.synchronize()
            times.append(float(start.elapsed_time(end)) / 1e3)
        return median(times)


def _captured(work: Work) -> Work:
    """Replays what was captured after warming up on a stream of its own, as capturing wants it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
