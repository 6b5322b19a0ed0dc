"""From a checkpoint directory to an engine that is ready to step."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvasir_kernels.dispatch import prepare
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.errors import CheckpointError
from kvasir_protocol.messages import LAYOUT_VERSION, EndWarmUp, PageCut, PageDoor, PageLayout
from kvasir_protocol.wire import encode
from kvasir_workers.engine import Engine
from kvasir_workers.engine_directory.kernels import bring_kernels
from kvasir_workers.engine_directory.manifest import settle
from kvasir_workers.kv.exports import PageExporter
from kvasir_workers.kv.manager import KvManager, Reuse
from kvasir_workers.kv.offload.open_tiers import OpenTiers
from kvasir_workers.kv.offload.page_mover import PageMover
from kvasir_workers.kv.page_memory import PageShape, SharedSegment
from kvasir_workers.kv.prefix_tree import PageWatcher
from kvasir_workers.memory import MemoryPlan, check_host_cache, free_memory, plan_memory
from kvasir_workers.model.cache_scales import read_cache_scales, token_scales
from kvasir_workers.model.checkpoint import read_eos_token_ids
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.fingerprint import fingerprint
from kvasir_workers.model.fusion import fuse
from kvasir_workers.model.loader import load_decoder, load_spec
from kvasir_workers.model.spec import DecoderSpec
from kvasir_workers.parallel.collectives import Meeting
from kvasir_workers.parallel.gang_runner import GangRunner
from kvasir_workers.parallel.gang_stream import GangStreamRunner
from kvasir_workers.parallel.links import PlanSender
from kvasir_workers.parallel.load_rank import LoadedRank, RankPlan, load_rank, page_shape, plan_rank, segment_name_of
from kvasir_workers.parallel.mesh import LEADER, GangShape, RankPlace
from kvasir_workers.parallel.pipeline import Stage
from kvasir_workers.parallel.shard import cut_model
from kvasir_workers.request_check import EngineLimits
from kvasir_workers.resolve import (
    planned_footprint,
    resolve_cache_dtype,
    resolve_device,
    resolve_dtype,
    resolve_quantization,
    resolve_step_tokens,
)
from kvasir_workers.runner.decode_graphs import DecodeGraphs
from kvasir_workers.runner.device import Runner
from kvasir_workers.runner.executor import CallersThread, DeviceThread, Steps
from kvasir_workers.runner.model_runner import ModelRunner
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.runner.stream_runner import StreamRunner

if TYPE_CHECKING:  # an engine without grammars, or with all its ranks on one host, does without what these need
    from kvasir_workers.grammar.compiler import GrammarCompiler
    from kvasir_workers.kv.transfer.distant_pages import DistantPages


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Weights and pages in memory. pages: [L, 2, N, P, K, D]; segment: where they lie, if other processes see them.

    graphs: of decode steps, where the device has any.
    lead: of several ranks this is the one that leads, and decoder and pages are its own part of the model.
    parts: the pages of all ranks of such a gang, as far as this process can reach them; nothing if it can't.
    """

    decoder: Decoder
    pages: Tensor
    segment: SharedSegment | None
    layout: PageLayout
    limits: EngineLimits
    graphs: DecodeGraphs | None = None
    lead: "Lead | None" = None
    parts: "tuple[RankPages, ...]" = ()

    @property
    def own_segment(self) -> SharedSegment | None:
        """What of the shared memory holds this process's pages: of a gang its leader's part."""
        return self.parts[LEADER].segment if self.parts else self.segment


@dataclass(frozen=True, slots=True)
class RankPages:
    """One rank's pages, and what of the model they are of. segment: the shared memory that they lie in, if they do."""

    cut: PageCut
    memory: "Tensor | DistantPages"
    segment: SharedSegment | None

    def close(self) -> None:
        """Give the segment's name back, and let go of a rank on another host. Idempotent."""
        if self.segment is not None:
            self.segment.remove()
        if not isinstance(self.memory, Tensor):
            self.memory.close()


@dataclass(frozen=True, slots=True)
class Lead:
    """What makes a leader of a rank: its own part of each step, and the way to tell the others of theirs."""

    stage: Stage
    followers: PlanSender

    def end_warm_up(self) -> None:
        """From now on the other ranks, too, tell of what they have to compile. Raises RankLost."""
        self.followers.send(encode(EndWarmUp()))

    def close(self) -> None:
        """The other ranks end."""
        self.followers.close()
        self.stage.close()


@dataclass(frozen=True, slots=True)
class LeaderSeat:
    """Where a leader meets its followers, who are on their way. segment_name: as in LocalGang.

    doors: by rank, where to ask for pages that can't be reached otherwise; known once all have loaded.
    """

    shape: GangShape
    meeting: Meeting
    followers: PlanSender
    segment_name: str = ""
    doors: Callable[[], Mapping[int, PageDoor]] = dict


@dataclass(frozen=True, slots=True)
class SegmentWish:
    """Pages where other processes see them, under this name. is_must: rather fail than keep them private."""

    name: str
    is_must: bool


def load_model(model: ModelConfig, engine: EngineConfig, segment_wish: SegmentWish | None = None) -> LoadedModel:
    """Plan the memory, then load the weights and set the pages aside, in shared memory if that is wished for.

    Raises CheckpointError, ConfigError or OutOfMemory before anything large is taken.
    """
    directory = Path(model.path)
    if not directory.is_dir():
        raise CheckpointError(f"no model directory {directory}; give a directory in Hugging Face format")
    model = settle(model, GangShape())
    spec = load_spec(directory)
    device = resolve_device(engine)
    footprint = planned_footprint(model, engine, spec, device)
    plan = plan_memory(footprint, engine, model.max_model_len, free_memory(device))
    if device.type == "cuda":
        check_host_cache(engine, free_memory(torch.device("cpu")))
    dtype, quantization = resolve_dtype(model, spec), resolve_quantization(model, spec, device)
    cache_dtype = resolve_cache_dtype(engine, dtype)
    layout = page_layout(spec, engine.page_size, cache_dtype, fingerprint(directory, quantization))
    limits = _limits(directory, spec, plan)
    bring_kernels(directory, device)
    prepare(device)
    decoder = load_decoder(directory, dtype, device, quantization, packs=True)
    if cache_dtype == torch.int8:
        decoder.scale_cache(token_scales(spec, plan.num_pages, engine.page_size, device))
    elif cache_dtype != dtype:
        decoder.scale_cache(read_cache_scales(directory, spec, device))
    fuse(decoder)
    shape: PageShape = (spec.num_layers, 2, plan.num_pages, engine.page_size, spec.num_kv_heads, spec.head_dim)
    # Last: the name of a segment outlives a process that fails after it.
    segment = _wished_segment(segment_wish, shape, cache_dtype) if segment_wish and device.type == "cpu" else None
    pages = segment.tensor if segment is not None else torch.zeros(shape, dtype=cache_dtype, device=device)
    return LoadedModel(decoder=decoder, pages=pages, segment=segment, layout=layout, limits=limits)


def load_leader(model: ModelConfig, engine: EngineConfig, seat: LeaderSeat) -> LoadedModel:
    """The same for the first of several ranks, together with all others. Raises RankLost if one does not come."""
    directory = Path(model.path)
    plan = plan_rank(model, engine, RankPlace(seat.shape, LEADER))
    layout = page_layout(
        plan.shard.whole, engine.page_size, plan.cache_dtype, fingerprint(directory, plan.quantization)
    )
    rank = load_rank(plan, seat.meeting, segment_name_of(seat.segment_name, LEADER))
    try:
        parts = _reach_parts(plan, rank, seat)
    except BaseException:
        rank.stage.close()
        raise
    return LoadedModel(
        decoder=rank.decoder,
        pages=rank.stage.pages,
        segment=None,
        layout=layout,
        limits=_limits(directory, plan.shard.whole, rank.memory),
        lead=Lead(rank.stage, seat.followers),
        parts=parts,
    )


def _reach_parts(plan: RankPlan, leader: LoadedRank, seat: LeaderSeat) -> tuple[RankPages, ...]:
    """The pages of all ranks; nothing, and all let go of, if those of one can't be reached.

    The names of segments this process gives back in the end, whatever becomes of the others.
    """
    parts = []
    with ExitStack() as reached:
        for number in range(seat.shape.num_ranks):
            part = _reach_part(number, plan, leader, seat)
            if part is None:
                return ()
            reached.callback(part.close)
            parts.append(part)
        reached.pop_all()
    return tuple(parts)


def _reach_part(number: int, plan: RankPlan, leader: LoadedRank, seat: LeaderSeat) -> RankPages | None:
    shard = cut_model(plan.shard.whole, RankPlace(seat.shape, number))
    layers, heads = shard.kv.layers, shard.kv.kv_heads
    cut = PageCut(first_layer=layers.start, num_layers=len(layers), kv_heads=heads)
    if number == LEADER:
        return RankPages(cut, leader.stage.pages, leader.segment)
    shape = page_shape(shard, leader.memory.num_pages, plan.page_size)
    segment = _find_segment(segment_name_of(seat.segment_name, number), shape, plan.cache_dtype)
    if segment is not None:
        return RankPages(cut, segment.tensor, segment)
    door = seat.doors().get(number)
    if door is None:
        return None
    return RankPages(cut, _distant_pages(number, door, shape, plan.cache_dtype, seat.meeting.deadline_s), None)


def _distant_pages(
    rank: int, door: PageDoor, shape: PageShape, dtype: torch.dtype, deadline_s: float
) -> "DistantPages":
    from kvasir_workers.kv.transfer.distant_pages import DistantPages

    return DistantPages.reach(rank, door, shape, dtype, deadline_s)


def _find_segment(name: str, shape: PageShape, dtype: torch.dtype) -> SharedSegment | None:
    """A rank's, as one whose name is given back here; None if it has none, or is on another host."""
    try:
        return SharedSegment(name, SharedSegment.attach(name, shape, dtype).tensor, is_owner=True) if name else None
    except (OSError, ValueError):
        return None


def _limits(directory: Path, spec: DecoderSpec, plan: MemoryPlan) -> EngineLimits:
    return EngineLimits(
        max_sequence_tokens=plan.max_sequence_tokens,
        vocab_size=spec.vocab_size,
        eos_token_ids=frozenset(
            token_id
            for token_id in read_eos_token_ids(directory)
            if token_id < spec.vocab_size  # some checkpoints name an end token that the model can't say
        ),
    )


def _wished_segment(wish: SegmentWish, shape: PageShape, dtype: torch.dtype) -> SharedSegment | None:
    if wish.is_must:
        return SharedSegment.create(wish.name, shape, dtype)
    return SharedSegment.create_if_room(wish.name, shape, dtype, "pages come over TCP")


def build_engine(
    loaded: LoadedModel,
    config: EngineConfig,
    exporter: PageExporter | None = None,
    watcher: PageWatcher | None = None,
    opened: OpenTiers | None = None,
) -> Engine:
    """opened: what lies below the pages; the caller closes it when the engine is no more."""
    mover, tiers = (opened.mover, opened.tiers) if opened is not None else (None, None)
    num_stages = loaded.lead.stage.place.shape.pipeline_parallel_size if loaded.lead is not None else 1
    overlaps = num_stages == 1 and (loaded.pages.is_cuda if config.overlap is None else config.overlap)
    runner = _runner(loaded, config, mover, overlaps=overlaps)
    reuse = Reuse(enabled=config.enable_prefix_caching)
    kv = KvManager(loaded.pages.shape[2], config.page_size, reuse, watcher, tiers)
    config = replace(config, device="cuda" if loaded.pages.is_cuda else "cpu", overlap=overlaps)
    step_tokens = resolve_step_tokens(config, loaded.decoder.spec, loaded.decoder.dtype, loaded.pages.device)
    config = replace(config, max_num_batched_tokens=step_tokens.most)
    return Engine(runner, kv, config, loaded.limits, exporter, num_batches=num_stages, spare_tokens=step_tokens.spare)


def _runner(loaded: LoadedModel, config: EngineConfig, mover: PageMover | None, *, overlaps: bool) -> Runner:
    eos_token_ids, lead = loaded.limits.eos_token_ids, loaded.lead
    has_stream = loaded.pages.is_cuda or loaded.graphs is not None
    if lead is None and has_stream:
        return StreamRunner(loaded.decoder, loaded.pages, eos_token_ids, config.max_num_seqs, loaded.graphs, mover)
    if lead is not None and has_stream and lead.stage.place.shape.pipeline_parallel_size == 1:
        return GangStreamRunner(lead.stage, lead.followers, eos_token_ids, config.max_num_seqs, loaded.graphs)
    thread: Steps[list[SampledToken]] = DeviceThread() if overlaps else CallersThread()
    if lead is not None:
        return GangRunner(lead.stage, lead.followers, eos_token_ids, thread)
    return ModelRunner(loaded.decoder, loaded.pages, eos_token_ids, thread, mover)


def grammar_compiler(directory: Path, limits: EngineLimits) -> "GrammarCompiler":
    """Compiles what structured requests ask for, with the tokenizer in a model's directory."""
    from kvasir_workers.grammar.compiler import GrammarCompiler
    from kvasir_workers.grammar.token_table import TokenSource

    return GrammarCompiler(
        TokenSource(directory=directory, vocab_size=limits.vocab_size, eos_token_ids=limits.eos_token_ids)
    )


def page_layout(spec: DecoderSpec, page_size: int, dtype: torch.dtype, model_fingerprint: str) -> PageLayout:
    return PageLayout(
        version=LAYOUT_VERSION,
        dtype=str(dtype).removeprefix("torch."),
        page_size=page_size,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        model_fingerprint=model_fingerprint,
    )
