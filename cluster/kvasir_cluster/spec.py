"""What the controller is told when it is created, and what it tells of its progress."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from kvasir_cluster.plan import Pacing
from kvasir_protocol.config import ClusterConfig, ReplicaConfig
from kvasir_protocol.view import Role, StartPhase


class RunningRank(Protocol):
    """One rank of a gang inside its own process; rank 0, the leader, is a whole `kvasir_workers.replica.Replica`.

    endpoint: where routers reach it, if it leads.
    """

    @property
    def endpoint(self) -> str: ...

    @property
    def num_streams(self) -> int:
        """Requests that it holds."""

    @property
    def start_phases(self) -> tuple[StartPhase, ...]:
        """What its start was made of, in order, if it leads."""

    def change_role(self, role: Role) -> None:
        """Call itself otherwise; whatever it is doing goes on."""

    def start(self) -> None:
        """Return once a canary token has gone through the model."""

    def failure(self) -> str | None:
        """Why it is of no use any more; None while it is healthy."""

    def stop(self) -> object:
        """End orderly. What is returned is for whoever owns the process."""


class Rendezvous(Protocol):
    """How the ranks of a gang find their leader."""

    def announce(self, address: str) -> None:
        """The leader waits for the others here."""

    def find(self) -> str:
        """What the leader has announced, as soon as it has. Raises RankLost if it never does."""


BuildRank = Callable[[ReplicaConfig, bytes, int, Rendezvous], RunningRank]
"""(config, cluster secret, rank, rendezvous) -> the rank, loaded but not started. Runs in the rank's own process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long to wait for what. poll_s bounds how late the controller notices what sends it no signal.

    start_s covers loading the weights. health_deadline_s: a replica that leaves a question unanswered for
    this long is taken for hung. stop_s: for a replica to finish in order before it is killed. drain_s: for the streams
    of one that is not wanted any more; it is not asked for them before unseen_s, when every router has seen it leave.
    bind_s: for a restarted controller to get its predecessor's port back.
    """

    poll_s: float = 0.25
    placement_s: float = 10.0
    start_s: float = 900.0
    health_period_s: float = 1.0
    health_deadline_s: float = 15.0
    stop_s: float = 5.0
    drain_s: float = 30.0
    unseen_s: float = 1.5
    bind_s: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSpec:
    """The desired state and the place to serve the view from.

    instance tells this cluster from others on the same hosts. wish: the configuration as it was asked for, config: the
    same with its "auto" and None settled.
    replica_host, view_host: addresses to listen on; "" is the one under which Ray knows the host.
    view_port is fixed, because routers must find the controller again after it was restarted; 0 lets it choose once.
    places_routers: routers belong to the cluster; otherwise they are somebody else's affair.
    """

    instance: str
    wish: ClusterConfig
    config: ClusterConfig
    secret: bytes = field(repr=False)
    build_rank: BuildRank
    replica_host: str
    view_host: str
    view_port: int
    places_routers: bool = False
    log_level: str = "warning"
    timings: Timings = field(default_factory=Timings)
    pacing: Pacing = field(default_factory=Pacing)

    @property
    def name(self) -> str:
        """What the names of its placement groups, actors and shared-memory segments start with."""
        return f"kvasir-{self.instance}"
