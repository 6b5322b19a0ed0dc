"""What "auto" stands for: on this machine, with this checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch

from kvasir_kernels.paged_cache import MAX_GPU_HEAD_DIM
from kvasir_kernels.user_kernels import is_any_replaced
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.errors import ConfigError
from kvasir_workers.memory import Footprint, graph_bytes, page_bytes, seen_bytes, step_bytes
from kvasir_workers.model.loader import weight_bytes
from kvasir_workers.model.spec import DecoderSpec
from kvasir_workers.model.stored_quantization import stored_quantization
from kvasir_workers.quantization.scheme import QuantizationSpec, find_scheme
from kvasir_workers.roofline import ModelWork

_CPU_PRODUCTS_PER_S = 5 * 10**10
"""Multiplications of a core, of float32; of bfloat16 some have twice as many."""

_BRIEF_S, _MOST_BRIEF_TOKENS = 0.1, 1024
_LONG_S, _MOST_LONG_TOKENS = 8.0, 512


def resolve_device(config: EngineConfig) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ConfigError("device cuda was asked for, but torch finds no CUDA device; use --device cpu")
    return torch.device("cuda" if config.device != "cpu" and has_cuda else "cpu")


def resolve_dtype(model: ModelConfig, spec: DecoderSpec) -> torch.dtype:
    """The dtype that was asked for, or (auto) the one that the checkpoint's config.json names."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[spec.dtype if model.dtype == "auto" else model.dtype]


def resolve_cache_dtype(config: EngineConfig, dtype: torch.dtype) -> torch.dtype:
    """What keys and values are stored in; dtype is the model's."""
    match config.kv_cache_dtype:
        case "auto":
            return dtype
        case "fp8" | "fp8_e4m3":
            return torch.float8_e4m3fn
        case "int8":
            return torch.int8
        case _:
            assert_never(config.kv_cache_dtype)


def resolve_quantization(model: ModelConfig, spec: DecoderSpec, device: torch.device) -> QuantizationSpec | None:
    """The scheme that was asked for, or that of the checkpoint.

    Raises ConfigError for one that there is not, or not on this device, or not of this checkpoint; CheckpointError for
    a checkpoint that is quantized in an unknown way.
    """
    scheme = find_scheme(model.quantization)
    if scheme is not None and scheme.float8 is None and device.type != "cpu":
        raise ConfigError(f"quantization {scheme.name} is for CPUs so far; leave it out, or use --device cpu")
    stored = stored_quantization(Path(model.path), spec)
    if scheme is not None and stored is not None:
        raise ConfigError(
            f"{model.path} is quantized already ({stored.name}); leave out quantization {scheme.name}, or take the "
            "unquantized checkpoint"
        )
    return scheme or stored


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Of one step: the most, and how many of them are only for the rest of prompts (`step_budget`)."""

    most: int
    spare: int = 0


def resolve_step_tokens(
    engine: EngineConfig, spec: DecoderSpec, dtype: torch.dtype, device: torch.device
) -> StepTokens:
    """spec: of what this device computes.

    Unless it was set, a CPU takes as many as a core computes in 0.1 s, up to 1,024: prompts that come together are
    answered sooner the fewer steps they take, since each step also decodes for those that were answered already. It
    takes 512 where that is more, as long as a core computes them in 8 s, so that prompts share the reading of the
    weights; and in any case one for each running sequence. An eighth more is spare.
    """
    if engine.max_num_batched_tokens is not None or device.type != "cpu":
        return StepTokens(engine.step_tokens)
    num_products = max(ModelWork.of(spec, dtype).num_products, 1)
    brief = min(_affordable_tokens(num_products, _BRIEF_S), _MOST_BRIEF_TOKENS)
    long = min(_affordable_tokens(num_products, _LONG_S), _MOST_LONG_TOKENS)
    num_tokens = max(brief, long, engine.max_num_seqs)
    return StepTokens(num_tokens + num_tokens // 8, num_tokens // 8)


def _affordable_tokens(num_products: int, seconds: float) -> int:
    """Tokens that a core computes in so many seconds, down to a power of two. num_products: of one token."""
    affordable = int(seconds * _CPU_PRODUCTS_PER_S) // num_products
    return (1 << affordable.bit_length()) // 2


def planned_footprint(model: ModelConfig, engine: EngineConfig, spec: DecoderSpec, device: torch.device) -> Footprint:
    """What a replica of one rank will take. Raises ConfigError or CheckpointError, as what it resolves does."""
    dtype = resolve_dtype(model, spec)
    num_step_tokens = resolve_step_tokens(engine, spec, dtype, device).most
    return Footprint(
        weight_bytes=weight_bytes(Path(model.path), dtype, resolve_quantization(model, spec, device)),
        page_bytes=page_bytes(spec, engine.page_size, resolve_cache_dtype(engine, dtype)),
        max_positions=spec.max_position_embeddings,
        step_bytes=step_bytes(spec, dtype, num_step_tokens, engine.max_num_seqs),
        graph_bytes=planned_graph_bytes(model, engine, spec, device),
        seen_bytes=seen_bytes(spec, engine, device),
    )


def planned_graph_bytes(model: ModelConfig, config: EngineConfig, spec: DecoderSpec, device: torch.device) -> int:
    """What the graphs of decode steps will take; 0 without."""
    if not uses_graphs(spec, device, config):
        return 0
    max_tokens = model.max_model_len or spec.max_position_embeddings
    return graph_bytes(spec, resolve_dtype(model, spec), config, max_tokens)


def uses_graphs(spec: DecoderSpec, device: torch.device, config: EngineConfig) -> bool:
    """Whether decode steps are recorded: on GPUs, unless that was forbidden, or attention would ask the host.

    Nor with kernels of users: they know nothing of lengths that a graph reads only on the device.
    """
    may_record = device.type == "cuda" and not config.enforce_eager and not is_any_replaced()
    return may_record and spec.head_dim <= MAX_GPU_HEAD_DIM
