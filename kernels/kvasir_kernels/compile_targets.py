"""GPUs that kernels are compiled for without having any, and what stands in the place of their driver meanwhile."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace

from triton.backends.compiler import GPUTarget


@dataclass(frozen=True, slots=True)
class Gpu:
    """max_shared: bytes of shared memory that a program may have."""

    target: GPUTarget
    max_shared: int


GPUS: Mapping[str, Gpu] = {
    "sm_80": Gpu(GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": Gpu(GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": Gpu(GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": Gpu(GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


def gpu_of(target: str) -> Gpu:
    """By its name: one of ours, or any other sm_N or gfxN. Raises ValueError for what is neither."""
    if target in GPUS:
        return GPUS[target]
    if found := re.fullmatch(r"sm_(\d+)", target):
        return Gpu(GPUTarget("cuda", int(found[1]), 32), GPUS["sm_80"].max_shared)
    if re.fullmatch(r"gfx[0-9a-f]+", target):
        return Gpu(GPUTarget("hip", target, 64 if target.startswith("gfx9") else 32), GPUS["gfx942"].max_shared)
    raise ValueError(f"{target!r} is no GPU's name; there are {', '.join(GPUS)}")


def name_of(target: GPUTarget) -> str:
    """The other way round."""
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


class CompilingDriver:
    """What Triton asks of a driver, where kernels are compiled and not run. A number stands for each device."""

    _devices = count()

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.device = next(self._devices)
        self.utils = SimpleNamespace(
            get_device_properties=lambda _device: {"max_shared_mem": gpu.max_shared},
            load_binary=lambda *_binary: (None, None, 0, 0, 1024),
        )

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._gpu.target

    def launcher_cls(self, _source: object, _metadata: object) -> object:
        return lambda *_arguments: None
