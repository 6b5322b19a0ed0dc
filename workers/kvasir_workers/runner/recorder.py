"""How a computation is recorded once and replayed often."""

from collections.abc import Callable
from typing import Protocol

import torch

from kvasir_kernels.compile_watch import COMPILE_WATCH

Work = Callable[[], None]
"""Reads and writes memory that stays where it is, in the same way each time."""


class Recorder(Protocol):
    """Records work, which is done once or twice meanwhile."""

    def record(self, name: str, work: Work) -> Work:
        """Does the same again at each call, of what is in memory then."""
        ...


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory: no two of them may run at once.

    A replay goes to the stream of whoever calls it.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, name: str, work: Work) -> Work:
        self.rehearse(work)
        return self.capture(name, work)

    def rehearse(self, work: Work) -> None:
        """Capturing allows no compilation, and no library that looks for memory at first: so once without."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, name: str, work: Work) -> Work:
        """Of what was rehearsed. Waits for the device first."""
        COMPILE_WATCH.count(f"graph of {name}")
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on to use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)
        replay: Work = graph.replay
        return replay


class Rerun:
    """Where the device has no graphs: what was recorded is computed again, step by step."""

    def record(self, name: str, work: Work) -> Work:
        COMPILE_WATCH.count(f"graph of {name}")
        work()
        return work
