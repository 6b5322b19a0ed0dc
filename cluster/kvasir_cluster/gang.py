"""One replica as Ray sees it: a placement group and its rank actors, which live and die together."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError
from ray.util import get_placement_group, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from kvasir_cluster.actors import RankActor, RankRefused, RankStarted
from kvasir_cluster.placement import NodeResources, Placement, Resource, explain_wait, place
from kvasir_cluster.plan import Failure, GangState, ObservedGang
from kvasir_cluster.probe import HealthProbe, describe_error
from kvasir_cluster.spec import BuildRank, Timings
from kvasir_protocol.config import PoolConfig, ReplicaConfig
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ReplicaAddress, Role, StartPhase

CALLS_AT_ONCE = 8
"""Threads of a rank actor: start and the death sentinel each hold one for long, questions must not wait for them."""

LEADER = 0
"""The rank that schedules for all and serves the data plane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GangSpec:
    """What one gang is made of."""

    replica: ReplicaConfig
    pool: PoolConfig
    resource: Resource
    secret: bytes = field(repr=False)
    build_rank: BuildRank
    timings: Timings

    @property
    def placement(self) -> Placement:
        return place(self.pool, self.resource)

    @property
    def segment_prefix(self) -> str:
        """What the names of its shared-memory segments start with, and no other gang's."""
        return f"{self.replica.segment_prefix}-{self.replica.replica_id}-"

    @property
    def group_name(self) -> str:
        return name_group(self.replica.segment_prefix, self.replica.replica_id)

    def actor_name(self, rank: int) -> str:
        return f"{self.group_name}/{rank}"


def name_group(cluster: str, replica_id: ReplicaId) -> str:
    """A placement group's name: all clusters in one Ray share one table of them."""
    return f"{cluster}/{replica_id}"


def find_groups(cluster: str) -> dict[ReplicaId, bool]:
    """The ids of all gangs that the cluster ever had; True for those whose placement group still exists."""
    groups = placement_group_table().values()
    return {
        ReplicaId(group["name"].removeprefix(f"{cluster}/")): group["state"] != "REMOVED"
        for group in groups
        if group["name"].startswith(f"{cluster}/")
    }


def end_gangs(cluster: str, gangs: Sequence["Gang"], stop_s: float) -> None:
    """End all gangs in order, by force those that take longer than stop_s, and those that nobody took over."""
    farewells = [reference for gang in gangs for reference in gang.ask_to_stop()]
    if farewells:
        ray.wait(farewells, num_returns=len(farewells), timeout=stop_s)
    for gang in gangs:
        gang.tear_down()
    known = {gang.replica_id for gang in gangs}
    for replica_id in (replica_id for replica_id, exists in find_groups(cluster).items() if exists):
        if replica_id not in known:
            remove_group(cluster, replica_id)


def remove_group(cluster: str, replica_id: ReplicaId) -> None:
    """End a gang of which parts are missing: what is left of its ranks dies with its place."""
    remove_placement_group(get_placement_group(name_group(cluster, replica_id)))
    remove_segments(f"{cluster}-{replica_id}-")


def read_nodes() -> list[NodeResources]:
    """What the living hosts of the cluster offer."""
    free = cast(dict[str, dict[str, float]], available_resources_per_node())  # type: ignore[no-untyped-call]
    nodes = cast(list[dict[str, Any]], ray.nodes())  # type: ignore[no-untyped-call]
    return [
        NodeResources(address=node["NodeManagerAddress"], total=node["Resources"], free=free.get(node["NodeID"], {}))
        for node in nodes
        if node["Alive"]
    ]


class Gang:
    """A handle on a gang that runs, or is about to. Nothing here waits for it.

    Actors and placement group are detached: they outlive the controller's process, which finds them again by name.
    """

    def __init__(self, spec: GangSpec, group: Any, actors: Sequence[Any], now_s: float) -> None:
        self._spec = spec
        self._group = group
        self._actors = tuple(actors)
        self._asked_at_s = now_s
        self._health = HealthProbe(actors, spec.timings)
        self._starts = {actor.start.remote(): rank for rank, actor in enumerate(actors)}
        self._address: ReplicaAddress | None = None
        self._start_phases: tuple[StartPhase, ...] = ()
        self._failure: Failure | None = None

    @classmethod
    def create(cls, spec: GangSpec, now_s: float) -> "Gang":
        """Ask Ray for the place and for every rank in it; returns before it has them."""
        placement = spec.placement
        group = placement_group(
            placement.bundles, strategy=placement.strategy, name=spec.group_name, lifetime="detached"
        )
        actors = [_create_rank(spec, group, rank) for rank in range(placement.num_ranks)]
        return cls(spec, group, actors, now_s)

    @classmethod
    def adopt(cls, spec: GangSpec, now_s: float) -> "Gang | None":
        """The gang that an earlier controller created, or None (and its remains removed) if a rank is missing."""
        try:
            actors = [ray.get_actor(spec.actor_name(rank)) for rank in range(spec.placement.num_ranks)]
        except ValueError:
            remove_group(spec.replica.segment_prefix, spec.replica.replica_id)
            return None
        return cls(spec, get_placement_group(spec.group_name), actors, now_s)

    @property
    def replica_id(self) -> ReplicaId:
        return self._spec.replica.replica_id

    @property
    def address(self) -> ReplicaAddress | None:
        """Where routers reach it; None until it has started."""
        return self._address

    @property
    def unanswered_starts(self) -> list[Any]:
        """Ray references to the ranks' answers that haven't been taken in yet."""
        return list(self._starts)

    @property
    def signals(self) -> list[Any]:
        """Ray references to wait on: one ends when there is something new to observe."""
        return [*self._health.sentinels, *self.unanswered_starts]

    def observe(self, now_s: float) -> ObservedGang:
        """The state that it is in now."""
        replica_id = self.replica_id
        # An answer is heard once, whoever looks first.
        self._failure = self._failure or self._find_failure(now_s)
        if self._failure is not None:
            return ObservedGang(replica_id=replica_id, state="failed", failure=self._failure)
        state: GangState = "starting" if self._starts else "ready"
        return ObservedGang(replica_id=replica_id, state=state, start_phases=self._start_phases)

    def _find_failure(self, now_s: float) -> Failure | None:
        failure = self._follow_start(now_s) if self._starts else None
        if failure is not None:
            return failure
        # Placing and loading block no thread that answers questions, but an actor without a place can't answer.
        if self._starts:
            return None
        reason = self._health.find_failure(now_s)
        return Failure(message=reason) if reason else None

    def _follow_start(self, now_s: float) -> Failure | None:
        """Take in the answers of ranks that have started; the first that failed fails the gang."""
        answered, _ = ray.wait(list(self._starts), num_returns=len(self._starts), timeout=0)
        failures = [failure for reference in answered if (failure := self._take_answer(reference)) is not None]
        if failures:
            # Those who only missed the one that was refused say so, too: what no other try heals is the reason.
            return min(failures, key=lambda failure: failure.can_heal)
        return self._judge_waiting(now_s) if self._starts else None

    def _take_answer(self, reference: Any) -> Failure | None:
        rank = self._starts.pop(reference)
        try:
            answer: RankStarted | RankRefused = ray.get(reference)
        except RayError as error:
            return Failure(message=f"{describe_error(error)} while it started")
        if isinstance(answer, RankRefused):
            return Failure(message=answer.message, can_heal=answer.can_heal)
        if rank == LEADER:
            self._start_phases = answer.phases
            self._address = ReplicaAddress(
                replica_id=self.replica_id, role=self._spec.replica.role, endpoint=answer.endpoint
            )
        return None

    def _judge_waiting(self, now_s: float) -> Failure | None:
        waited_s, timings = now_s - self._asked_at_s, self._spec.timings
        if waited_s >= timings.placement_s and placement_group_table(self._group)["state"] != "CREATED":
            return Failure(message=explain_wait(self._spec.pool, self._spec.resource, read_nodes()), can_heal=False)
        if waited_s >= timings.start_s:
            return Failure(message=f"it has not started within {timings.start_s:g} s")
        return None

    def take_role(self, role: Role) -> None:
        """Let it be of another role; what it is doing goes on."""
        self._actors[LEADER].change_role.remote(role)
        if self._address is not None:
            self._address = replace(self._address, role=role)

    def ask_num_streams(self) -> Any:
        """A Ray reference to how many requests it holds."""
        return self._actors[LEADER].num_streams.remote()

    def where(self) -> list[str]:
        """The id of each rank's host, in their order; empty before it has a place."""
        nodes = placement_group_table(self._group).get("bundles_to_node_id", {})
        placement = self._spec.placement
        found = [nodes.get(placement.bundle_of(rank)) or "" for rank in range(placement.num_ranks)]
        return found if all(found) else []

    def ask_to_stop(self) -> list[Any]:
        """Begin an orderly end; the references are answered when each rank has stopped."""
        return [actor.stop.remote() for actor in self._actors]

    def tear_down(self) -> None:
        """End whatever is left of it at once: every rank, the place, and the shared memory on this host."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        remove_placement_group(self._group)
        remove_segments(self._spec.segment_prefix)


def _create_rank(spec: GangSpec, group: Any, rank: int) -> Any:
    strategy = PlacementGroupSchedulingStrategy(
        placement_group=group, placement_group_bundle_index=spec.placement.bundle_of(rank)
    )
    return (
        ray.remote(RankActor)
        .options(
            num_cpus=1 if spec.resource == "CPU" else 0,
            num_gpus=1 if spec.resource == "GPU" else 0,
            name=spec.actor_name(rank),
            lifetime="detached",
            max_restarts=0,
            max_concurrency=CALLS_AT_ONCE,
            scheduling_strategy=strategy,
        )
        .remote(spec.replica, spec.secret, rank, spec.build_rank, spec.actor_name(LEADER))
    )


def remove_segments(prefix: str) -> None:
    """Unlink this host's shared-memory segments whose names start with prefix: a killed replica leaves its own."""
    for segment in Path("/dev/shm").glob(f"{prefix}*"):
        segment.unlink(missing_ok=True)
