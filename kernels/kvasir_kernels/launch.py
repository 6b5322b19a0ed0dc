"""What the launches of Triton kernels have in common."""

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Kernels run as Python on the CPU's tensors: TRITON_INTERPRET=1 was set before triton was first imported."""

_ASSUMED_MULTIPROCESSORS = 132
"""Where there is no device to ask (interpreter, compilation ahead of time): an H100's and H200's."""


def power_of_two(size: int) -> int:
    """The smallest one that holds `size`: Triton's tiles have no other sizes."""
    return 1 << (size - 1).bit_length()


def num_multiprocessors(device: torch.device) -> int:
    """How many programs the device runs at the very least at once."""
    if device.type != "cuda":
        return _ASSUMED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def multiplies_in_float32(x: Tensor) -> bool:
    """Whether products are taken in full float32 and not in the dtype of `x`, on the tensor cores.

    Float32 must equal the reference, which TF32 doesn't. The interpreter computes bfloat16 on its raw bits, wrongly.
    """
    return INTERPRETED or x.dtype == torch.float32


def multiplies_in_registers() -> bool:
    """Whether tensor cores take their operands from registers, as NVIDIA's did before Hopper: tiles must be smaller."""
    if INTERPRETED:
        return False
    target = triton.runtime.driver.active.get_current_target()
    return bool(target.backend == "cuda" and target.arch < 90)


def loads_while_it_multiplies() -> bool:
    """Whether a loop's next loads go to shared memory by themselves, as many turns ahead as there is room for."""
    return INTERPRETED or triton.runtime.driver.active.get_current_target().backend == "cuda"
