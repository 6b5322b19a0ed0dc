"""What the device can do at best, measured: a copy, and big products."""

import torch

from bench.gpu.bench import Bench
from bench.gpu.figures import Ceilings


def measure_ceilings(bench: Bench) -> Ceilings:
    size, clock = bench.sizes.product_size, bench.clock
    source = torch.zeros(bench.sizes.copied_bytes, dtype=torch.int8, device=bench.device)
    target = torch.empty_like(source)
    copy = clock.seconds(lambda: target.copy_(source))
    left, right = bench.random(size, size), bench.random(size, size)
    product = clock.seconds(lambda: left @ right)
    narrow_left, narrow_right = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).T
    scale = torch.ones((), device=bench.device)
    operations = 2 * size**3
    try:
        narrow = operations / clock.seconds(
            lambda: torch._scaled_mm(narrow_left, narrow_right, scale, scale, out_dtype=torch.bfloat16)
        )
    except RuntimeError:
        narrow = 0.0
    return Ceilings(copy=2 * bench.sizes.copied_bytes / copy, bfloat16=operations / product, float8=narrow)
