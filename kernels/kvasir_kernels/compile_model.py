"""The kernels of one model, compiled beforehand into Triton's cache: `python -m kvasir_kernels.compile_model`.

In a process of its own, since nothing can be computed beside a driver that only compiles; TRITON_CACHE_DIR says where.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import triton

from kvasir_kernels import compile_calls as calls
from kvasir_kernels.compile_cases import Case
from kvasir_kernels.compile_targets import CompilingDriver, gpu_of
from kvasir_kernels.float8.reference import Grain
from kvasir_kernels.move_pages.reference import PagePart
from kvasir_kernels.paged_cache import MAX_GPU_HEAD_DIM
from kvasir_kernels.tuning.choices import forced
from kvasir_kernels.tuning.table import read_table

_STEP_TOKENS = (1, 32, 64, 256, 512)
"""One of each size of tile that float8 products have, and of each size that tiles are measured for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What one rank's kernels are compiled for.

    stored: the cache's dtype. graph_rows: of each graph of decodes; max_pages: of the longest sequence there.
    grain: of float8, None without; matrices: inputs and outputs of what has it.
    """

    dtype: str
    stored: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    page_size: int
    windows: tuple[int | None, ...]
    has_head_norms: bool
    graph_rows: tuple[int, ...]
    max_pages: int
    grain: Literal["row", "block"] | None = None
    has_input_scale: bool = False
    matrices: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelShape":
        tree = json.loads(text)
        tree |= {name: tuple(tree[name]) for name in ("windows", "graph_rows")}
        return cls(**tree | {"matrices": tuple(map(tuple, tree["matrices"]))})


def cases_of(shape: ModelShape) -> Iterator[Case]:
    """What a step launches, with arguments of the kinds that a step has."""
    dtype, stored = getattr(torch, shape.dtype), getattr(torch, shape.stored)
    heads, page_size = (shape.num_heads, shape.num_kv_heads, shape.head_dim), shape.page_size
    yield partial(calls.norm, shape.hidden_size, dtype)
    yield partial(calls.gate, shape.intermediate_size, dtype)
    yield partial(calls.rotate, *heads, dtype, stored=stored, has_norms=shape.has_head_norms, page_size=page_size)
    if shape.head_dim <= MAX_GPU_HEAD_DIM:  # else torch attends
        yield from _attention_cases(shape, dtype, stored)
    part = PagePart(0, shape.num_layers, 0, shape.num_kv_heads)
    yield partial(calls.move, part, *heads[1:], stored, page_size=page_size)
    yield partial(calls.sample, shape.vocab_size)
    if shape.grain is not None:
        yield from _float8_cases(shape, Grain(shape.grain), dtype)


def _attention_cases(shape: ModelShape, dtype: torch.dtype, stored: torch.dtype) -> Iterator[Case]:
    """Of steps with chunks, and of graphs: the device cuts their decodes, for each size and window in its own way."""
    heads, page_size = (shape.num_heads, shape.num_kv_heads, shape.head_dim), shape.page_size
    for window in dict.fromkeys(shape.windows):
        yield partial(calls.attention, *heads, window, dtype, stored=stored, page_size=page_size)
        for num_rows in shape.graph_rows:
            yield partial(calls.decodes, num_rows, *heads, window, dtype, stored=stored, page_size=page_size)
    yield partial(calls.unpack, max(shape.graph_rows), shape.max_pages, page_size=page_size)


def _float8_cases(shape: ModelShape, grain: Grain, dtype: torch.dtype) -> Iterator[Case]:
    to = torch.zeros(1) if shape.has_input_scale else grain
    yield partial(calls.norm_float8, shape.hidden_size, to, dtype)
    yield partial(calls.gate_float8, shape.intermediate_size, to, dtype)
    yield partial(calls.quantize_rows, shape.num_heads * shape.head_dim, to, dtype)
    for num_inputs, num_outputs in shape.matrices:
        for num_tokens in _STEP_TOKENS:
            yield partial(
                calls.linear_float8,
                num_tokens,
                grain,
                num_inputs,
                num_outputs,
                has_input_scale=shape.has_input_scale,
            )


def compile_model(shape: ModelShape, target: str, tiles: Path | None = None) -> None:
    """Fill the cache. tiles: a table whose choices the kernels are to have, all of which must be for the target."""
    triton.runtime.driver.set_active(CompilingDriver(gpu_of(target)))
    choices = {choice.key: choice.tile for choice in read_table(tiles)} if tiles is not None else {}
    with forced(choices):
        for case in cases_of(shape):
            case()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kvasir_kernels.compile_model", description=__doc__)
    parser.add_argument("target", help="sm_90, gfx942, …")
    parser.add_argument("shape", type=ModelShape.from_json, help="a ModelShape as JSON")
    parser.add_argument("--tiles", type=Path, metavar="FILE", help="a table of tiles")
    options = parser.parse_args()
    compile_model(options.shape, options.target, options.tiles)


if __name__ == "__main__":
    main()
