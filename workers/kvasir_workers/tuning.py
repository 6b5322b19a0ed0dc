"""What of a model there is to tune: the operations with tiles, at the shapes that one rank computes."""

from collections.abc import Iterator

import torch

from kvasir_kernels.tuning.problems import SERVED, AttentionShape, Loads, attention_problems, float8_problems
from kvasir_kernels.tuning.search import Problem
from kvasir_protocol.config import EngineConfig
from kvasir_workers.parallel.shard import ModelShard, layer_matrices
from kvasir_workers.quantization.scheme import QuantizationSpec
from kvasir_workers.resolve import resolve_cache_dtype


def problems_of(
    shard: ModelShard,
    dtype: torch.dtype,
    engine: EngineConfig,
    device: torch.device,
    scheme: QuantizationSpec | None = None,
    loads: Loads = SERVED,
) -> Iterator[Problem]:
    """One after the other: each has its numbers in memory from when it is asked for."""
    local = shard.local
    shape = AttentionShape(
        num_heads=local.num_heads,
        num_kv_heads=local.num_kv_heads,
        head_dim=local.head_dim,
        page_size=engine.page_size,
        dtype=dtype,
        stored=resolve_cache_dtype(engine, dtype),
    )
    yield from attention_problems(shape, loads, device)
    if scheme is not None and scheme.float8 is not None:
        for num_inputs, num_outputs in layer_matrices(shard, dtype):
            yield from float8_problems(num_inputs, num_outputs, scheme.float8.grain, device)
