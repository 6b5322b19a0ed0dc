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


NAMES = ("sm_80", "sm_90", "sm_100", "gfx942")
"""Those that every kernel is compiled for in our tables and tests."""

_CUDA_SHARED_KIB: Mapping[int, int] = {
    75: 64,
    80: 163, 86: 99, 87: 163, 89: 99,
    90: 227,
    100: 227, 103: 227, 110: 227,
    120: 99, 121: 99,
}  # fmt: skip
"""A block's most, by compute capability; GPUs for workstations have less than those of the same generation for servers.

NVIDIA, CUDA Programming Guide, appendix "Compute Capabilities", table of shared memory per thread block:
https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html
"""

_LEAST_CUDA_SHARED_KIB = 99
"""Of those that have bfloat16 (8.0 and later): of one that is newer than the table nothing more is known."""

_HIP_SHARED_KIB = 64
"""A workgroup's on every GPU of AMD's that Triton knows; gfx950 has more."""


def gpu_of(target: str) -> Gpu:
    """By its name, sm_N or gfxN. Raises ValueError for what is neither."""
    if found := re.fullmatch(r"sm_(\d+)", target):
        capability = int(found[1])
        shared_kib = _CUDA_SHARED_KIB.get(capability, _LEAST_CUDA_SHARED_KIB)
        return Gpu(GPUTarget("cuda", capability, 32), shared_kib * 1024)
    if re.fullmatch(r"gfx[0-9a-f]+", target):
        return Gpu(GPUTarget("hip", target, 64 if target.startswith("gfx9") else 32), _HIP_SHARED_KIB * 1024)
    raise ValueError(f"{target!r} is no GPU's name; there are {', '.join(NAMES)}")


GPUS: Mapping[str, Gpu] = {name: gpu_of(name) for name in NAMES}


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
