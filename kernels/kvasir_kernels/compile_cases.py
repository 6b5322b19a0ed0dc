"""The shapes for which compile_check compiles the kernels: those of models that are served."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from kvasir_kernels.compile_calls import (
    HALF,
    all_reduce,
    attention,
    decodes,
    gate,
    gate_float8,
    gelu_gate,
    gelu_gate_float8,
    head_norm,
    linear_float8,
    linear_of_one_scale,
    move,
    norm,
    norm_float8,
    quantize_rows,
    rotate,
    sample,
    unpack,
    write,
)
from kvasir_kernels.float8.reference import FLOAT8, Grain
from kvasir_kernels.move_pages.reference import PagePart
from kvasir_kernels.paged_cache import ScoreChanges

Case = Callable[[], None]

KERNEL_MODULES = tuple(
    f"kvasir_kernels.{module}"
    for module in (
        "rms_norm.kernel", "silu_mul.kernel", "float8.kernel", "rotate_and_write.kernel", "write_kv.kernel",
        "paged_attention.decode_kernel", "paged_attention.extend_kernel", "float8_linear.kernel", "move_pages.kernel",
        "mask_logits.kernel", "penalise.kernel", "sample_tokens.kernel", "unpack_decodes.kernel", "cut_decodes.kernel",
        "one_shot_all_reduce.kernel",
    )
)  # fmt: skip


_VOCABULARY = 128256


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        for size in (4096, 16384):
            cases[f"add_rms_norm {size} {name}"] = partial(norm, size, dtype)
        cases[f"rms_norm of heads of 128 {name}"] = partial(head_norm, 16, 128, dtype)
        cases[f"silu_mul 14336 {name}"] = partial(gate, 14336, dtype)
        for layout in ((32, 8, 64), (32, 8, 128), (16, 8, 256)):
            cases[f"rotate_and_write {_named(*layout)} {name}"] = partial(rotate, *layout, dtype)
        for layout in ((14, 2, 64), (32, 8, 128), (16, 8, 256)):
            cases[f"attention {_named(*layout)} {name}"] = partial(attention, *layout, None, dtype)
    for layout in ((32, 8, 64), (32, 32, 96), (71, 1, 64)):
        cases[f"attention {_named(*layout)} bfloat16"] = partial(attention, *layout, None, HALF)
    llama = (32, 8, 128)
    cases[f"attention {_named(*llama)} window bfloat16"] = partial(attention, *llama, 4096, HALF)
    cases[f"attention {_named(*llama)} float16"] = partial(attention, *llama, None, torch.float16)
    changes = ScoreChanges(50.0, torch.zeros(32))
    cases[f"attention {_named(*llama)} soft cap, sinks"] = partial(attention, *llama, None, HALF, changes=changes)
    for stored, narrow in ((FLOAT8, "float8"), (torch.int8, "int8")):
        for layout in (llama, (16, 8, 256)):
            cases[f"attention {_named(*layout)} {narrow}"] = partial(attention, *layout, None, HALF, stored=stored)
        cases[f"rotate_and_write {_named(*llama)} {narrow}"] = partial(rotate, *llama, HALF, stored=stored)
        cases[f"write_kv 8x128 {narrow}"] = partial(write, 8, 128, stored)
    for grain in Grain:
        cases[f"add_rms_norm_float8 4096 {grain.value}"] = partial(norm_float8, 4096, grain)
        cases[f"silu_mul_float8 14336 {grain.value}"] = partial(gate_float8, 14336, grain)
        cases[f"quantize 4096 {grain.value}"] = partial(quantize_rows, 4096, grain)
        for num_tokens in (1, 64, 512):
            cases[f"float8_linear {num_tokens} {grain.value}"] = partial(linear_float8, num_tokens, grain)
    cases["write_kv 8x128 bfloat16"] = partial(write, 8, 128, HALF)
    cases["gelu_mul 14336 bfloat16"] = partial(gelu_gate, 14336)
    cases["gelu_mul_float8 14336 row"] = partial(gelu_gate_float8, 14336, Grain.ROW)
    cases["float8_linear 64 tensor"] = partial(linear_of_one_scale, 64, 4096, 6144)
    cases["move_pages 4 of 8x128"] = partial(move, PagePart(0, 2, 4, 4))
    cases[f"sample of {_VOCABULARY}"] = partial(sample, _VOCABULARY)
    for num_ranks in (2, 4, 8):
        cases[f"one_shot_all_reduce of {num_ranks} bfloat16"] = partial(all_reduce, num_ranks, 4096, HALF)
    cases["one_shot_all_reduce of 8 float32"] = partial(all_reduce, 8, 4096, torch.float32)
    cases["256 decodes of a graph"] = partial(decodes, 256, *llama, None, HALF)
    cases["unpack_decodes 256 of 8192 pages"] = partial(unpack, 256, 8192)
    return cases


def _named(num_heads: int, num_kv_heads: int, head_dim: int) -> str:
    return f"{num_heads}/{num_kv_heads}x{head_dim}"


CASES: Mapping[str, Case] = _cases()
