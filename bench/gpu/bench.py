"""One run: its device, its clock, its sizes, and the figures so far."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.gpu.figures import OURS, Figure
from bench.gpu.sizes import Sizes
from kvasir_kernels.tuning.clock import Clock, Work


@dataclass(slots=True)
class Bench:
    """deadline: on the monotonic clock; what has not begun by then is left out, and said to be."""

    device: torch.device
    sizes: Sizes
    deadline: float
    figures: list[Figure] = field(default_factory=list)
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype)

    def measure(
        self,
        part: str,
        case: str,
        ways: dict[str, Work],
        *,
        num_bytes: float = 0.0,
        num_operations: float = 0.0,
    ) -> None:
        """Ours must work; another way that this torch or this device has not is noted with its reason."""
        for way, work in ways.items():
            seconds, note = None, ""
            if time.monotonic() > self.deadline:
                note = "left out: no time left"
            else:
                try:
                    seconds = self.clock.seconds(work)
                except (RuntimeError, NotImplementedError, ValueError) as error:
                    if way == OURS:
                        raise
                    note = str(error).strip().splitlines()[0][:200]
            self.figures.append(Figure(part, case, way, seconds, num_bytes, num_operations, note))
