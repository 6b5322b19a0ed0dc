"""Products with weights in float8, beside cuBLAS's in float8 and in bfloat16."""

from functools import partial

import torch

from bench.gpu.bench import Bench
from bench.gpu.figures import OURS
from kvasir_kernels.float8.reference import Grain, quantize, quantize_weight
from kvasir_kernels.float8_linear import library


def measure_products(bench: Bench) -> None:
    from kvasir_kernels.float8_linear.kernel import float8_linear

    for num_inputs, num_outputs in bench.sizes.linears:
        weight = bench.random(num_outputs, num_inputs)
        for num_tokens in bench.sizes.linear_tokens:
            x = bench.random(num_tokens, num_inputs)
            for grain in Grain:
                left, right = quantize(x, grain), quantize_weight(weight, grain)
                ways = {OURS: partial(float8_linear, left, right, None, torch.bfloat16)}
                if grain is Grain.ROW:
                    ways["torch._scaled_mm"] = partial(library.float8_linear, left, right, None, torch.bfloat16)
                    ways["bfloat16"] = partial(torch.nn.functional.linear, x, weight)
                num_bytes = num_inputs * num_outputs + num_tokens * (num_inputs + 2 * num_outputs)
                bench.measure(
                    f"FP8 product, {grain.value}",
                    f"{num_tokens} x {num_inputs} -> {num_outputs}",
                    ways,
                    num_bytes=num_bytes,
                    num_operations=2 * num_tokens * num_inputs * num_outputs,
                )
