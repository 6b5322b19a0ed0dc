"""Copies whole pages between the device and the host tier's buffer, in the order of the device's work."""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from kvasir_workers.kv.offload.moves import Moves


class _Stopwatch(Protocol):
    """Measures what the device does between its making and `stop`."""

    def stop(self) -> None: ...

    def seconds(self) -> float | None:
        """None while the device has not come so far."""
        ...


class _HostStopwatch:
    def __init__(self) -> None:
        self._started_at = time.perf_counter()
        self._seconds: float | None = None

    def stop(self) -> None:
        self._seconds = time.perf_counter() - self._started_at

    def seconds(self) -> float | None:
        return self._seconds


class _CudaStopwatch:
    def __init__(self) -> None:
        self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._start.record()

    def stop(self) -> None:
        self._end.record()

    def seconds(self) -> float | None:
        if not self._end.query():  # type: ignore[no-untyped-call]
            return None
        return float(self._start.elapsed_time(self._end)) / 1000


class PageMover:
    """pages: [L, 2, N, P, K, D] on the device; buffer: [slots, L, 2, P, K, D] on the host, pinned beside a GPU."""

    def __init__(self, pages: Tensor, buffer: Tensor) -> None:
        self._pages = pages
        self._buffer = buffer
        self._stopwatch: Callable[[], _Stopwatch] = _CudaStopwatch if pages.is_cuda else _HostStopwatch
        self._measured: deque[tuple[int, _Stopwatch]] = deque()

    @torch.inference_mode()
    def move(self, moves: Moves) -> None:
        """One page after the other, since many at once would need memory for all of them in between."""
        for save in moves.saves:
            self._buffer[save.slot].copy_(self._pages[:, :, save.page], non_blocking=True)
        if not moves.restores:
            return
        stopwatch = self._stopwatch()
        for restore in moves.restores:
            self._pages[:, :, restore.page].copy_(self._buffer[restore.slot], non_blocking=True)
        stopwatch.stop()
        self._measured.append((len(moves.restores), stopwatch))

    def take_restore_times(self) -> list[tuple[int, float]]:
        """How many pages were restored in how many seconds, since the last time."""
        times: list[tuple[int, float]] = []
        while self._measured and (seconds := self._measured[0][1].seconds()) is not None:
            times.append((self._measured.popleft()[0], seconds))
        return times
