"""How many pages a replica gets, decided before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path

import torch

from kvasir_protocol.config import EngineConfig
from kvasir_protocol.errors import OutOfMemory
from kvasir_workers.kv.manager import pages_for
from kvasir_workers.model.cache_scales import TOKEN_SCALE_BYTES
from kvasir_workers.model.spec import DecoderSpec, check_max_model_len
from kvasir_workers.runner.decode_graphs import graph_sizes

DEFAULT_FULL_SEQUENCES = 16
"""Room, unless told otherwise, for this many sequences of full length, or for what a quarter of the memory holds."""

DEFAULT_MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.85}
"""Share that pages may take of what weights and a full step leave: a CPU's is everybody's, a GPU's is ours."""


_GRAPH_BYTES = 10 * 2**20
"""Of one graph, beside tensors: TensorRT-LLM tells of 260 MB for 26 more of them. Not yet measured here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """num_pages fit beside the weights; a sequence may have up to max_sequence_tokens tokens."""

    num_pages: int
    max_sequence_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a model takes: its weights once, page_bytes for each page; max_positions is its longest context.

    step_bytes: of the tensors of a full step. graph_bytes: of the graphs of its decode steps, if there are any.
    seen_bytes: of the table of what sequences with penalties have seen, where the device keeps one.
    """

    weight_bytes: int
    page_bytes: int
    max_positions: int
    step_bytes: int = 0
    graph_bytes: int = 0
    seen_bytes: int = 0

    @property
    def bytes_beside_pages(self) -> int:
        return self.weight_bytes + self.step_bytes + self.graph_bytes + self.seen_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeMemory:
    device_type: str
    num_bytes: int


def page_bytes(spec: DecoderSpec, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page of this dtype: keys and values of page_size tokens in every layer."""
    head_bytes = spec.head_dim * dtype.itemsize + (TOKEN_SCALE_BYTES if dtype == torch.int8 else 0)
    return 2 * spec.num_layers * page_size * spec.num_kv_heads * head_bytes


def step_bytes(spec: DecoderSpec, dtype: torch.dtype, num_tokens: int, num_sequences: int) -> int:
    """Bytes that the tensors of so large a step take at once: the widest layer's, and twice the logits of all."""
    num_heads = spec.num_heads + 2 * spec.num_kv_heads
    attention = num_heads * spec.head_dim + spec.num_heads * spec.head_dim
    row = 3 * spec.hidden_size + max(attention, 3 * spec.intermediate_size)
    logits = 2 * num_sequences * spec.vocab_size * torch.float32.itemsize
    return num_tokens * row * dtype.itemsize + logits


def graph_bytes(spec: DecoderSpec, dtype: torch.dtype, config: EngineConfig, max_tokens: int) -> int:
    """Bytes that the graphs of decode steps take: each its own, and all together those of the largest step.

    max_tokens: of the longest sequence.
    """
    max_rows, num_pages = config.max_num_seqs, pages_for(max_tokens, config.page_size)
    tables = max_rows * num_pages * (torch.int64.itemsize + torch.int32.itemsize)
    # In the model's dtype, in float32, and where they are kept.
    logits = max_rows * spec.vocab_size * (dtype.itemsize + 2 * torch.float32.itemsize)
    step = step_bytes(spec, dtype, max_rows, max_rows)
    return len(graph_sizes(max_rows)) * _GRAPH_BYTES + tables + logits + step


def seen_bytes(spec: DecoderSpec, config: EngineConfig, device: torch.device) -> int:
    """Bytes of the table of seen tokens (`runner/seen_ledger.py`), once a sequence with penalties has come; a host that
    samples by itself has none."""
    return 0 if device.type == "cpu" else config.max_num_seqs * spec.vocab_size * torch.int32.itemsize


def free_memory(device: torch.device) -> FreeMemory:
    """What a new process could have on the device now."""
    return FreeMemory(device_type=device.type, num_bytes=_free_bytes(device))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, _cgroup_available_bytes())
    raise OutOfMemory("/proc/meminfo does not tell the available memory; set the KV cache size yourself")


def _cgroup_available_bytes() -> int:
    """What a container may still take, or a very large number outside of one."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return 2**62
    return 2**62 if limit == "max" else max(0, int(limit) - used)


def plan_memory(footprint: Footprint, config: EngineConfig, max_model_len: int | None, free: FreeMemory) -> MemoryPlan:
    """Divide the free memory between weights, a full step, graphs, the table of seen tokens and pages.

    Raises OutOfMemory with the numbers if they don't fit, ConfigError if max_model_len is beyond the model.
    """
    check_max_model_len(max_model_len, footprint.max_positions)
    longest = max_model_len or footprint.max_positions
    longest_pages = pages_for(longest, config.page_size)
    # A GPU's pages lie elsewhere than its host tier.
    host_bytes = config.host_cache_bytes if free.device_type == "cpu" else 0
    room = free.num_bytes - footprint.bytes_beside_pages - host_bytes
    if config.kv_cache_bytes is None:
        budget = int(max(0, room) * DEFAULT_MEMORY_SHARE[free.device_type])
        num_pages = min(budget // footprint.page_bytes, longest_pages * DEFAULT_FULL_SEQUENCES)
    else:
        budget = config.kv_cache_bytes
        num_pages = budget // footprint.page_bytes
    least_pages = longest_pages if max_model_len is not None else 1
    if num_pages < least_pages or num_pages * footprint.page_bytes > room:
        raise OutOfMemory(
            f"weights of {_mib(footprint.weight_bytes)}{_and('a host cache', host_bytes)}"
            f"{_and('tensors of a full step', footprint.step_bytes)}{_and('graphs', footprint.graph_bytes)}"
            f"{_and('a table for penalties', footprint.seen_bytes)} and "
            f"{max(num_pages, least_pages)} pages of {_mib(footprint.page_bytes)} each do not fit: "
            f"{_mib(free.num_bytes)} are free, of which pages may take {_mib(budget)}; lower "
            "max_model_len or max_num_batched_tokens, set another KV cache size, use a smaller dtype, or free memory"
        )
    return MemoryPlan(num_pages=num_pages, max_sequence_tokens=min(longest, num_pages * config.page_size))


def check_host_cache(config: EngineConfig, free: FreeMemory) -> None:
    """Raise OutOfMemory if a GPU's host tier is larger than the host's free memory."""
    if config.host_cache_bytes > free.num_bytes:
        raise OutOfMemory(
            f"engine.host_cache_bytes asks for {_mib(config.host_cache_bytes)} of host memory, "
            f"{_mib(free.num_bytes)} are free; lower it"
        )


def _and(what: str, num_bytes: int) -> str:
    return f", {what} of {_mib(num_bytes)}" if num_bytes else ""


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
