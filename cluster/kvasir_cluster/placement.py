"""Where a gang's ranks may run, and in words why they can't. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kvasir_protocol.config import PoolConfig
from kvasir_protocol.errors import PlacementError

Resource = Literal["CPU", "GPU"]

NODE_RESOURCE_AMOUNT = 0.001
"""Of a pool's node_resource in each bundle: only whether a host offers it matters, so 1 is enough for 1000 bundles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResources:
    """What one host offers, by Ray's names of resources."""

    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One bundle per pipeline stage, each as large as its tensor-parallel ranks together.

    A bundle never spans hosts, so that a tensor-parallel group stays on one; PACK keeps the stages close.

        tp=2 pp=2    | GPU GPU |   | GPU GPU |
                       stage 0       stage 1
    """

    resource: Resource
    ranks_per_stage: int
    num_stages: int
    node_resource: str | None = None

    @property
    def num_ranks(self) -> int:
        return self.ranks_per_stage * self.num_stages

    @property
    def bundles(self) -> list[dict[str, float]]:
        bundle: dict[str, float] = {self.resource: float(self.ranks_per_stage)}
        if self.node_resource is not None:
            bundle[self.node_resource] = NODE_RESOURCE_AMOUNT
        return [dict(bundle) for _ in range(self.num_stages)]

    @property
    def strategy(self) -> Literal["STRICT_PACK", "PACK"]:
        return "STRICT_PACK" if self.num_stages == 1 else "PACK"

    def bundle_of(self, rank: int) -> int:
        """The bundle in which a rank runs."""
        return rank // self.ranks_per_stage

    def may_use(self, node: NodeResources) -> bool:
        """Whether the host is one of those that may hold it, however full."""
        return self.node_resource is None or node.total.get(self.node_resource, 0.0) > 0


def place(pool: PoolConfig, resource: Resource) -> Placement:
    """What one replica of the pool asks for: a CPU or a GPU for each rank."""
    return Placement(
        resource=resource,
        ranks_per_stage=pool.tensor_parallel_size,
        num_stages=pool.pipeline_parallel_size,
        node_resource=pool.node_resource,
    )


def check_fits(pools: Iterable[PoolConfig], resource: Resource, nodes: Sequence[NodeResources]) -> None:
    """Raise PlacementError if the hosts, with nothing else on them, could not hold every replica of the pools.

    Pools that only some hosts may hold choose first.
    """
    room = {index: node.total.get(resource, 0.0) for index, node in enumerate(nodes)}
    for pool in sorted(pools, key=lambda pool: pool.node_resource is None):
        placement = place(pool, resource)
        usable = [index for index, node in enumerate(nodes) if placement.may_use(node)]
        for num_placed in range(pool.replicas):
            if not _take(room, usable, placement):
                raise PlacementError(_explain(pool, placement, [room[index] for index in usable], num_placed))


def explain_wait(pool: PoolConfig, resource: Resource, nodes: Sequence[NodeResources]) -> str:
    """Why a replica of the pool has not been given a place: what it asks for, and what is free now."""
    placement = place(pool, resource)
    free = [node.free.get(resource, 0.0) for node in nodes if placement.may_use(node)]
    return _explain(pool, placement, free, num_placed=0)


def _take(room: dict[int, float], usable: Iterable[int], placement: Placement) -> bool:
    """Put one replica's stages into the first usable hosts with room; True if all found a place."""
    for _ in range(placement.num_stages):
        host = next((host for host in usable if room[host] >= placement.ranks_per_stage), None)
        if host is None:
            return False
        room[host] -= placement.ranks_per_stage
    return True


def _explain(pool: PoolConfig, placement: Placement, room: Sequence[float], num_placed: int) -> str:
    resource, needed = placement.resource, placement.ranks_per_stage
    stages = f"{placement.num_stages} x " if placement.num_stages > 1 else ""
    because = []
    if pool.tensor_parallel_size > 1:
        because.append(f"tensor_parallel_size={pool.tensor_parallel_size}")
    if pool.pipeline_parallel_size > 1:
        because.append(f"pipeline_parallel_size={pool.pipeline_parallel_size}")
    needs = f"{stages}{needed} {resource}{'s' if needed > 1 or stages else ''} per replica"
    if because:
        needs += f" ({', '.join(because)})"
    placed = f" once {num_placed} of {pool.replicas} replicas are placed" if num_placed else ""
    if placement.node_resource is not None:
        needs += f" on a node with {placement.node_resource}"
        if not room:
            return f'pool "{pool.name}" needs {needs} but no node offers it; start Ray there with --resources'
    largest = max(room, default=0.0)
    return f'pool "{pool.name}" needs {needs} but the largest free node has {largest:g}{placed}; {_advice(placement)}'


def _advice(placement: Placement) -> str:
    wider = "lower tensor_parallel_size or replicas" if placement.ranks_per_stage > 1 else "lower replicas"
    cpu = ", set engine.device to cpu" if placement.resource == "GPU" else ""
    return f"{wider}{cpu} or add a node"
