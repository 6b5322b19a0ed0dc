"""What a controller tells of itself and its cluster."""

from dataclasses import dataclass

from kvasir_cluster.plan import READY, GangState
from kvasir_cluster.router_host import RouterState
from kvasir_protocol.config import ClusterConfig
from kvasir_protocol.view import StartPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the cluster has come. news: what happened since the controller lives, oldest first, for a person.

    start_phases: of each gang in its turn, empty until it has started.
    routers: by host address, those that the controller placed; None where nothing is known of one yet.
    fatal: why it can't come up as it is configured; nothing is tried any more.
    """

    process_id: int
    phase: str
    gangs: tuple[tuple[str, GangState], ...]
    news: tuple[str, ...]
    start_phases: tuple[tuple[StartPhase, ...], ...] = ()
    routers: tuple[tuple[str, RouterState | None], ...] = ()
    fatal: str | None = None

    @property
    def is_ready(self) -> bool:
        """Every replica serves, and every router reaches them all."""
        num_serving = sum(state == "ready" for _, state in self.gangs)
        return self.phase == READY and all(
            state is not None and (state.num_live or 0) >= num_serving for _, state in self.routers
        )

    @property
    def router_failure(self) -> str | None:
        """Why the first router that can't serve can't; it is tried again now and then."""
        failures = ((address, state.failure) for address, state in self.routers if state is not None)
        return next((f"router on {address}: {failure}" for address, failure in failures if failure is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GangReport:
    """One gang. pool: its role, behind its model's key if that is not the first.

    hosts: the id of each rank's host, in their order; empty before it has a place."""

    replica_id: str
    pool: str
    state: GangState
    is_outdated: bool
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterReport:
    """wish: the configuration as it was asked for."""

    instance: str
    wish: ClusterConfig
    progress: Progress
    gangs: tuple[GangReport, ...]
