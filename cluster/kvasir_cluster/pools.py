"""How the pools share what a host has. Pure."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvasir_cluster.placement import NodeResources, Resource
from kvasir_protocol.config import ClusterConfig, PoolConfig
from kvasir_protocol.errors import ConfigError

MAX_RANKS_PER_CORE = 16
"""A rank is a process with a copy of the weights. Beyond this the host only swaps; rather a word than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What this host offers; num_gpus counts only those that the installed torch can use."""

    num_cores: int
    num_gpus: int


def num_replicas(pools: tuple[PoolConfig, ...]) -> int:
    return sum(pool.replicas for pool in pools)


def num_ranks(pools: tuple[PoolConfig, ...]) -> int:
    """Processes that all replicas of the pools need together."""
    return sum(pool.replicas * pool.tensor_parallel_size * pool.pipeline_parallel_size for pool in pools)


def resolve(config: ClusterConfig, hardware: Hardware) -> ClusterConfig:
    """The configuration with its "auto" and None settled for one host that holds every replica.

    Device: GPUs where there are any. Threads: the cores shared evenly, so that replicas don't fight for them.
    Raises ConfigError for more replicas than a host could bear.
    """
    num_wanted, num_possible = num_ranks(config.pools), MAX_RANKS_PER_CORE * hardware.num_cores
    if num_wanted > num_possible:
        raise ConfigError(
            f"the pools ask for {num_wanted} processes, but this host of {hardware.num_cores} cores takes "
            f"{num_possible} at most; lower the number of replicas"
        )
    device = _resolve_device(config, hardware)
    threads = config.engine.num_threads or max(1, hardware.num_cores // num_wanted)
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, device=device, num_threads=threads))


def resolve_over(config: ClusterConfig, nodes: Sequence[NodeResources]) -> ClusterConfig:
    """The same for a cluster, where a replica may come to any host that has room.

    Threads: so few that the smallest host with replicas could be full of them. Raises ConfigError.
    """
    num_gpus = round(sum(node.total.get("GPU", 0.0) for node in nodes))
    sizes = [int(cpus) for node in nodes if (cpus := node.total.get("CPU", 0.0)) >= 1]
    num_cores = min(sizes, default=1)
    device = _resolve_device(config, Hardware(num_cores=num_cores, num_gpus=num_gpus))
    threads = config.engine.num_threads or max(1, num_cores // num_ranks(config.pools))
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, device=device, num_threads=threads))


def _resolve_device(config: ClusterConfig, hardware: Hardware) -> Literal["cpu", "cuda"]:
    match config.engine.device:
        case "auto":
            return "cuda" if hardware.num_gpus else "cpu"
        case "cuda" if not hardware.num_gpus:
            raise ConfigError(
                "engine.device is cuda, but no GPU is visible to the installed torch; "
                "set it to cpu, or install a torch built for CUDA"
            )
        case device:
            return device


def resource_of(config: ClusterConfig) -> Resource:
    """What each rank of a resolved configuration takes a piece of."""
    return "GPU" if config.engine.device == "cuda" else "CPU"
