"""From a checkpoint directory to an engine that is ready to step."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.errors import CheckpointError, ConfigError
from kvasir_protocol.messages import LAYOUT_VERSION, PageLayout
from kvasir_workers.engine import Engine, EngineLimits, PageExporter
from kvasir_workers.kv.manager import KvManager
from kvasir_workers.kv.page_memory import PageShape, SharedSegment
from kvasir_workers.memory import Footprint, free_memory, page_bytes, plan_memory
from kvasir_workers.model.checkpoint import read_generation_defaults
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.loader import load_decoder, load_spec, weight_bytes
from kvasir_workers.model.spec import DecoderSpec
from kvasir_workers.runner.model_runner import ModelRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Weights and pages in memory. pages: [L, 2, N, P, K, D]; segment: where they lie, if other processes see them."""

    decoder: Decoder
    pages: Tensor
    segment: SharedSegment | None
    layout: PageLayout
    limits: EngineLimits


def load_model(model: ModelConfig, engine: EngineConfig, segment_name: str | None = None) -> LoadedModel:
    """Plan the memory, then load the weights and set the pages aside, in shared memory if segment_name is given.

    Raises CheckpointError, ConfigError or OutOfMemory before anything large is taken.
    """
    directory = Path(model.path)
    if not directory.is_dir():
        raise CheckpointError(f"no model directory {directory}; give a directory in Hugging Face format")
    spec = load_spec(directory)
    device = resolve_device(engine)
    dtype = resolve_dtype(model, spec)
    footprint = Footprint(
        weight_bytes=weight_bytes(directory, dtype),
        page_bytes=page_bytes(spec, engine.page_size, dtype),
        max_positions=spec.max_position_embeddings,
    )
    plan = plan_memory(footprint, engine, model.max_model_len, free_memory(device))
    decoder = load_decoder(directory, dtype, device)
    shape: PageShape = (spec.num_layers, 2, plan.num_pages, engine.page_size, spec.num_kv_heads, spec.head_dim)
    segment = None
    if segment_name is not None and device.type == "cpu":
        segment = SharedSegment.create(segment_name, shape, dtype)
    return LoadedModel(
        decoder=decoder,
        pages=segment.tensor if segment is not None else torch.zeros(shape, dtype=dtype, device=device),
        segment=segment,
        layout=page_layout(spec, engine.page_size, dtype, fingerprint(directory)),
        limits=EngineLimits(
            max_sequence_tokens=plan.max_sequence_tokens,
            vocab_size=spec.vocab_size,
            eos_token_ids=frozenset(read_generation_defaults(directory).eos_token_ids),
        ),
    )


def build_engine(loaded: LoadedModel, config: EngineConfig, exporter: PageExporter | None = None) -> Engine:
    runner = ModelRunner(loaded.decoder, loaded.pages, loaded.limits.eos_token_ids)
    kv = KvManager(loaded.pages.shape[2], config.page_size, enable_prefix_caching=config.enable_prefix_caching)
    return Engine(runner, kv, config, loaded.limits, exporter)


def resolve_device(config: EngineConfig) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ConfigError("device cuda was asked for, but torch finds no CUDA device; use --device cpu")
    return torch.device("cuda" if config.device != "cpu" and has_cuda else "cpu")


def resolve_dtype(model: ModelConfig, spec: DecoderSpec) -> torch.dtype:
    """The dtype that was asked for, or (auto) the one that the checkpoint's config.json names."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[spec.dtype if model.dtype == "auto" else model.dtype]


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


def fingerprint(directory: Path) -> str:
    """Names a checkpoint by its config and by size and header of its weight files; the weights are not read."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(header_size))
    return digest.hexdigest()[:16]
