"""From a checkpoint to one rank of a gang that is ready to step, together with all others."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kvasir_kernels.dispatch import prepare
from kvasir_kernels.paged_cache import CacheScales
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.errors import ConfigError
from kvasir_workers.engine_directory.kernels import bring_kernels
from kvasir_workers.engine_directory.manifest import settle
from kvasir_workers.kv.page_memory import SUFFIX, PageShape, SharedSegment
from kvasir_workers.memory import Footprint, MemoryPlan, free_memory, page_bytes, plan_memory, seen_bytes, step_bytes
from kvasir_workers.model.cache_scales import read_cache_scales, token_scales
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.loader import load_spec
from kvasir_workers.parallel.collectives import Collectives, Meeting
from kvasir_workers.parallel.mesh import LEADER, RankPlace
from kvasir_workers.parallel.pipeline import Stage
from kvasir_workers.parallel.shard import ModelShard, cut_model
from kvasir_workers.parallel.slices import load_shard, shard_bytes
from kvasir_workers.parallel.tensor import join_ranks
from kvasir_workers.quantization.scheme import QuantizationSpec
from kvasir_workers.resolve import (
    planned_graph_bytes,
    resolve_cache_dtype,
    resolve_device,
    resolve_dtype,
    resolve_quantization,
    resolve_step_tokens,
)

_WITHOUT_SEGMENT = "its pages pass through a socket, or, of a child of its leader, are not handed over"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRank:
    """memory: the same for all ranks. segment: where the pages lie, if other processes see them."""

    stage: Stage
    segment: SharedSegment | None
    decoder: Decoder
    memory: MemoryPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """What one rank will do, settled from headers and numbers alone."""

    directory: Path
    shard: ModelShard
    dtype: torch.dtype
    device: torch.device
    memory: MemoryPlan
    page_size: int
    cache_dtype: torch.dtype
    quantization: QuantizationSpec | None = None


def plan_rank(model: ModelConfig, engine: EngineConfig, place: RankPlace) -> RankPlan:
    """Raises CheckpointError, ConfigError or OutOfMemory if the rank can't be had."""
    if engine.host_cache_bytes:
        raise ConfigError(
            f"engine.host_cache_bytes is not supported with several ranks ({place.shape}) yet; leave it out"
        )
    model, directory = settle(model, place.shape), Path(model.path)
    spec = load_spec(directory)
    shard = cut_model(spec, place)
    dtype, device = resolve_dtype(model, spec), _device_of(engine, place)
    quantization = resolve_quantization(model, spec, device)
    if quantization is not None and quantization.float8 is None:
        raise ConfigError(
            f"quantization {quantization.name} is not supported with several ranks ({place.shape}) yet; leave it out"
        )
    footprint, config = _footprint(directory, dtype, device, shard, engine, quantization)
    if place.shape.pipeline_parallel_size == 1:
        with_logits = replace(shard.local, vocab_size=spec.vocab_size)  # which the leader has of all ranks
        footprint = replace(
            footprint,
            graph_bytes=planned_graph_bytes(model, engine, with_logits, device),
            seen_bytes=seen_bytes(with_logits, engine, device),
        )
    return RankPlan(
        directory=directory,
        shard=shard,
        dtype=dtype,
        device=device,
        memory=plan_memory(footprint, config, model.max_model_len, free_memory(device)),
        page_size=engine.page_size,
        cache_dtype=resolve_cache_dtype(engine, dtype),
        quantization=quantization,
    )


def _device_of(engine: EngineConfig, place: RankPlace) -> torch.device:
    """A GPU of its own: where several are visible, the ranks of this host take them in order."""
    device = resolve_device(engine)
    if device.type == "cpu":
        return device
    device = torch.device("cuda", place.rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _footprint(
    directory: Path,
    dtype: torch.dtype,
    device: torch.device,
    shard: ModelShard,
    engine: EngineConfig,
    quantization: QuantizationSpec | None,
) -> tuple[Footprint, EngineConfig]:
    """What to plan for, and the settings to plan by.

    engine.kv_cache_bytes is for the whole gang. The ranks of a CPU gang are taken to share one host's memory; each of
    a GPU gang has a device's for itself.
    """
    shards = [cut_model(shard.whole, RankPlace(shard.place.shape, rank)) for rank in range(shard.place.shape.num_ranks)]
    cache_dtype = resolve_cache_dtype(engine, dtype)
    pages = [page_bytes(each.local, engine.page_size, cache_dtype) for each in shards]
    positions = shard.whole.max_position_embeddings
    steps = _step_bytes(shards, dtype, device, engine)
    if device.type == "cpu":
        weights = sum(shard_bytes(directory, dtype, each, quantization) for each in shards)
        whole = Footprint(weight_bytes=weights, page_bytes=sum(pages), max_positions=positions, step_bytes=sum(steps))
        return whole, engine
    own = pages[shard.place.rank]
    if engine.kv_cache_bytes is not None:
        engine = replace(engine, kv_cache_bytes=engine.kv_cache_bytes * own // sum(pages))
    weights = shard_bytes(directory, dtype, shard, quantization)
    step = steps[shard.place.rank]
    return Footprint(weight_bytes=weights, page_bytes=own, max_positions=positions, step_bytes=step), engine


def _step_bytes(shards: list[ModelShard], dtype: torch.dtype, device: torch.device, engine: EngineConfig) -> list[int]:
    """Of the tensors of a full step, for each rank. Its leader says how many tokens that has, and has all logits."""
    num_tokens = resolve_step_tokens(engine, shards[LEADER].local, dtype, device).most
    specs = [shard.local for shard in shards]
    specs[LEADER] = replace(specs[LEADER], vocab_size=shards[LEADER].whole.vocab_size)
    return [step_bytes(spec, dtype, num_tokens, engine.max_num_seqs) for spec in specs]


def load_rank(plan: RankPlan, meeting: Meeting, segment_name: str = "") -> LoadedRank:
    """Meet the other ranks, agree on the number of pages, load. Returns when all are ready.

    segment_name: of shared memory for the pages, which stay private if it is "" or there is no room.

    Raises RankLost if another one does not come, CheckpointError for what headers do not tell.
    """
    bring_kernels(plan.directory, plan.device)
    prepare(plan.device)
    collectives = Collectives(plan.shard.place, meeting, plan.device)
    segment = None
    try:
        num_pages = collectives.least(plan.memory.num_pages)
        decoder = load_shard(plan.directory, plan.dtype, plan.device, plan.shard, plan.quantization)
        decoder.pack_weights()
        decoder.scale_cache(_cache_scales(plan, num_pages))
        join_ranks(decoder, collectives)
        shape = page_shape(plan.shard, num_pages, plan.page_size)
        if segment_name and plan.device.type == "cpu":
            segment = SharedSegment.create_if_room(segment_name, shape, plan.cache_dtype, _WITHOUT_SEGMENT)
        pages = segment.tensor if segment else torch.zeros(shape, dtype=plan.cache_dtype, device=plan.device)
        collectives.muster("loaded")
    except BaseException:
        if segment is not None:
            segment.remove()
        collectives.close()
        raise
    longest = min(plan.memory.max_sequence_tokens, num_pages * plan.page_size)
    return LoadedRank(
        stage=Stage(decoder, pages, plan.shard, collectives),
        segment=segment,
        decoder=decoder,
        memory=MemoryPlan(num_pages=num_pages, max_sequence_tokens=longest),
    )


def _cache_scales(plan: RankPlan, num_pages: int) -> list[CacheScales] | None:
    """Of the rank's layers and heads; None where pages are as wide as the model."""
    if plan.cache_dtype == plan.dtype:
        return None
    shard = plan.shard
    if plan.cache_dtype == torch.int8:
        return token_scales(shard.local, num_pages, plan.page_size, plan.device)
    scales, heads = read_cache_scales(plan.directory, shard.whole, plan.device), list(shard.kv.kv_heads)
    return [CacheScales(scales[layer].key[heads], scales[layer].value[heads]) for layer in shard.kv.layers]


def segment_name_of(name: str, rank: int) -> str:
    """What a rank calls its piece of shared memory in a gang of this name; "" if it has none."""
    return f"{name}-rank{rank}{SUFFIX}" if name else ""


def page_shape(shard: ModelShard, num_pages: int, page_size: int) -> PageShape:
    """Of the rank's own pages."""
    local = shard.local
    return local.num_layers, 2, num_pages, page_size, local.num_kv_heads, local.head_dim
