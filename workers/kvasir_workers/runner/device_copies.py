"""What goes between the host and the device while nobody waits."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16
"""In bytes: Triton compiles once more for an address that 16 doesn't divide."""

Array = NDArray[Any]

Wait = Callable[[torch.cuda.Event], None]
"""Returns when the device has come to the event."""


def upload(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """The arrays on the device. A GPU gets all of them in one copy, from pinned memory.

    On a CPU they are the arrays' own memory. Elsewhere the pinned memory is used again only when the copy is made:
    torch's allocator sees to that.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    ends = np.cumsum([-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]).tolist()
    starts = [0, *ends[:-1]]
    host = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True)
    buffer = host.numpy()
    for start, array in zip(starts, arrays, strict=True):
        buffer[start : start + array.nbytes].view(array.dtype)[:] = array.ravel()
    there = host.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(_torch_dtype(array)).view(array.shape)
        for start, array in zip(starts, arrays, strict=True)
    ]


def _torch_dtype(array: Array) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


class StagedMessages:
    """Messages of int32 to one place on the device, each written while the one before may still be on its way.

    Two buffers take turns. The engine has at most two steps on their way; should it ever have more, the third waits
    here until its buffer's last copy is made.
    """

    def __init__(self, num_numbers: int, device: torch.device) -> None:
        self.there = torch.zeros(num_numbers, dtype=torch.int32, device=device)
        is_cuda = device.type == "cuda"
        self._buffers = [torch.zeros(num_numbers, dtype=torch.int32, pin_memory=is_cuda) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)] if is_cuda else []  # type: ignore[no-untyped-call]
        self._turn = 0

    def buffer(self) -> NDArray[np.int32]:
        """Where the next message is to be written."""
        if self._copied:
            self._copied[self._turn].synchronize()
        numbers: NDArray[np.int32] = self._buffers[self._turn].numpy()
        return numbers

    def send(self, num_numbers: int) -> None:
        """Begin to copy the beginning of the buffer that was written last."""
        self.there[:num_numbers].copy_(self._buffers[self._turn][:num_numbers], non_blocking=True)
        if self._copied:
            self._copied[self._turn].record()
        self._turn = 1 - self._turn


class Homecoming:
    """Results on their way to the host: the one thing of a step that anybody waits for, in wait_for_event."""

    def __init__(
        self, tensors: Sequence[Tensor], device: torch.device, wait_for_event: Wait = torch.cuda.Event.synchronize
    ) -> None:
        """Begins to copy; what the device does before them is done, too, when they are there."""
        # To memory that torch pins.
        self._on_host = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._is_there = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._wait_for_event = wait_for_event
        if self._is_there is not None:
            self._is_there.record()

    def wait(self) -> list[Tensor]:
        if self._is_there is not None:
            self._wait_for_event(self._is_there)
        return self._on_host
