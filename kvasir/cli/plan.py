"""`kvasir plan`: what a model will take, and what it can give at best, before anything is loaded."""

import argparse
import importlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from kvasir.cli.host import check_models, find_hardware, has_one_gpu
from kvasir.cli.options import make_config
from kvasir_cluster.pools import num_replicas, resolve
from kvasir_protocol.config import ClusterConfig, ModelConfig
from kvasir_workers.engine_directory.manifest import settle
from kvasir_workers.kv.manager import pages_for
from kvasir_workers.memory import free_memory, plan_memory
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.loader import load_spec
from kvasir_workers.model.spec import DecoderSpec
from kvasir_workers.parallel.mesh import GangShape
from kvasir_workers.resident_memory import resident_bytes
from kvasir_workers.resolve import (
    planned_footprint,
    resolve_cache_dtype,
    resolve_device,
    resolve_dtype,
    resolve_quantization,
)
from kvasir_workers.roofline import DeviceRates, ModelWork, decode_s, measure_rates, prefill_s

RAY_BYTES = 68 * 2**20
"""Of a replica of the demo-sized model in Ray 2.60, more than of the same by `python -m kvasir_workers.replica`."""

PROMPTS = (128, 1024)
BATCHES = (1, 8, 32, 256)
CONTEXT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """Bytes of one replica, once all its pages are in use.

    process_bytes: Python, torch and our own code, as this process has them when it has read the same. ray_bytes: what
    Ray adds to the process that it runs a replica in.
    """

    weight_bytes: int
    num_pages: int
    page_bytes: int
    host_cache_bytes: int
    step_bytes: int
    graph_bytes: int
    seen_bytes: int
    process_bytes: int
    ray_bytes: int
    max_sequence_tokens: int
    page_size: int

    @property
    def total_bytes(self) -> int:
        cache = self.num_pages * self.page_bytes + self.host_cache_bytes
        step = self.step_bytes + self.graph_bytes + self.seen_bytes
        return self.weight_bytes + cache + step + self.process_bytes + self.ray_bytes

    def num_sequences(self, num_tokens: int) -> int:
        """How many of so many tokens the pages hold at once, with nothing in common."""
        return self.num_pages // pages_for(num_tokens, self.page_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """At best. ttft_s: by prompt length; tokens_per_s: by running sequences, each with CONTEXT tokens."""

    rates: DeviceRates
    ttft_s: dict[int, float]
    tokens_per_s: dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What one model takes and gives; title: its name and form, for a person. num_replicas: in all its pools."""

    title: str
    num_replicas: int
    replica: ReplicaPlan
    speed: Speed


def show_plan(options: argparse.Namespace) -> int:
    """Print it, for each model in its turn. Raises KvasirError where one can't be served like this."""
    hardware = find_hardware()
    config = resolve(make_config(options, default_is_mixed=has_one_gpu(hardware)), hardware)
    check_models(config)
    if config.engine.num_threads is not None:
        torch.set_num_threads(config.engine.num_threads)
    plans = {model.served_name: plan_model(alone(config, model)) for model in config.all_models}
    if options.json:
        told = {name: {"replica": asdict(plan.replica), "speed": asdict(plan.speed)} for name, plan in plans.items()}
        print(json.dumps({"models": told} if len(told) > 1 else told[config.model.served_name], indent=2))
        return 0
    console = Console(highlight=False)
    for plan in plans.values():
        console.print(plan.title, markup=False)
        console.print(_memory_table(plan))
        console.print(_speed_table(plan.replica, plan.speed))
    return 0


def alone(config: ClusterConfig, model: ModelConfig) -> ClusterConfig:
    """The configuration as if it were of this model only, with the model's own pools."""
    pools = tuple(replace(pool, model="") for pool in config.pools if config.model_of(pool) == model)
    return replace(config, model=settle(model, GangShape.of(pools[0])), models=(), pools=pools)


def plan_model(config: ClusterConfig) -> ModelPlan:
    """For the only model of a configuration; the device is measured anew. Raises OutOfMemory if it does not fit."""
    device, spec = resolve_device(config.engine), load_spec(Path(config.model.path))
    dtype = resolve_dtype(config.model, spec)
    quantization = resolve_quantization(config.model, spec, device)
    replica = plan_replica(config, spec, device)
    work = ModelWork.of(spec, dtype, quantization, resolve_cache_dtype(config.engine, dtype))
    weights = f"weights in {quantization.name}, " if quantization is not None else ""
    return ModelPlan(
        title=f"{config.model.served_name}: {spec.architecture}, {weights}{dtype} on {device}",
        num_replicas=num_replicas(config.pools),
        replica=replica,
        speed=predict(work, measure_rates(device, dtype), replica),
    )


def plan_replica(config: ClusterConfig, spec: DecoderSpec, device: torch.device) -> ReplicaPlan:
    """What each replica takes. Raises OutOfMemory with the numbers if it does not fit."""
    engine = config.engine
    footprint = planned_footprint(config.model, engine, spec, device)
    plan = plan_memory(footprint, engine, config.model.max_model_len, free_memory(device))
    return ReplicaPlan(
        weight_bytes=footprint.weight_bytes,
        num_pages=plan.num_pages,
        page_bytes=footprint.page_bytes,
        host_cache_bytes=engine.host_cache_bytes,
        step_bytes=footprint.step_bytes,
        graph_bytes=footprint.graph_bytes,
        seen_bytes=footprint.seen_bytes,
        process_bytes=process_bytes(spec, resolve_dtype(config.model, spec)),
        ray_bytes=RAY_BYTES,
        max_sequence_tokens=plan.max_sequence_tokens,
        page_size=engine.page_size,
    )


def process_bytes(spec: DecoderSpec, dtype: torch.dtype) -> int:
    """What a replica's process has beside weights, pages and tensors: this one, once it holds the same code."""
    importlib.import_module("kvasir_workers.replica")
    Decoder(spec, dtype, torch.device("meta"))
    return resident_bytes()


def predict(work: ModelWork, rates: DeviceRates, replica: ReplicaPlan) -> Speed:
    """For what fits into the pages."""
    longest = replica.max_sequence_tokens
    prompts = sorted({length for length in (*PROMPTS, longest - 1) if length < longest})
    context = min(CONTEXT, longest - 1)
    batches = [number for number in BATCHES if number <= replica.num_sequences(context + 1)]
    return Speed(
        rates=rates,
        ttft_s={length: prefill_s(work, rates, length) for length in prompts},
        tokens_per_s={number: number / decode_s(work, rates, number, context) for number in batches},
    )


def _memory_table(plan: ModelPlan) -> Table:
    replica = plan.replica
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    pages = f"{replica.num_pages:,} pages of {replica.page_size} tokens"
    rows = {
        "weights": replica.weight_bytes,
        f"keys and values, {pages}": replica.num_pages * replica.page_bytes,
        "host memory for evicted pages": replica.host_cache_bytes,
        "tensors of a full step": replica.step_bytes,
        "graphs of decode steps": replica.graph_bytes,
        "table for penalties": replica.seen_bytes,
        "Python and torch": replica.process_bytes,
        "Ray in the same process": replica.ray_bytes,
        "one replica": replica.total_bytes,
    }
    for name, num_bytes in rows.items():
        if num_bytes:
            table.add_row(name, _mib(num_bytes))
    if plan.num_replicas > 1:
        table.add_row(f"{plan.num_replicas} replicas", _mib(plan.num_replicas * replica.total_bytes))
    return table


def _speed_table(replica: ReplicaPlan, speed: Speed) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    longest = replica.max_sequence_tokens
    table.add_row("longest context", f"{longest:,} tokens, {replica.num_sequences(longest)} of them at once")
    rates = f"{speed.rates.bytes_per_s / 1e9:.1f} GB/s read, {speed.rates.flops_per_s / 1e9:,.0f} GFLOP/s, measured now"
    table.add_row("the device", rates)
    for length, seconds in speed.ttft_s.items():
        table.add_row(f"first token after {length:,}", f"{1000 * seconds:,.1f} ms at best")
    for number, rate in speed.tokens_per_s.items():
        table.add_row(f"{number} at once", f"{rate:,.0f} tokens/s at best")
    return table


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
