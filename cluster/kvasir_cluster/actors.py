"""The Ray actor around one rank. The only module of the cluster that knows the workers."""

import gc
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace

import ray
from ray.exceptions import RayError

from kvasir_cluster.hosts import own_address
from kvasir_cluster.logs import open_log
from kvasir_cluster.spec import BuildRank, Rendezvous, RunningRank
from kvasir_protocol.config import ReplicaConfig
from kvasir_protocol.errors import CheckpointError, ConfigError, KvasirError, OutOfMemory, PlacementError, RankLost
from kvasir_protocol.view import Role, StartPhase

HOPELESS = (CheckpointError, ConfigError, OutOfMemory, PlacementError)
"""Errors that another try with the same configuration can't heal."""

MEETING_S = 120.0
"""For a leader to import what it needs and say where it waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStarted:
    endpoint: str
    phases: tuple[StartPhase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRefused:
    """The rank said why it can't start."""

    message: str
    can_heal: bool


def build_replica(config: ReplicaConfig, secret: bytes, rank: int, rendezvous: Rendezvous) -> RunningRank:
    """The real rank: imports torch, so only a rank's process may call it."""
    if rank > 0:
        from kvasir_workers.parallel.hosted_rank import HostedRank

        return HostedRank(config, secret, rank, rendezvous.find())
    from kvasir_workers.parallel.hosted_gang import HostedGang
    from kvasir_workers.replica import Replica

    return Replica(config, secret, lambda name: HostedGang(config, secret, rendezvous.announce, name))


class _ActorRendezvous:
    """The leader's actor keeps its address for the others to ask for."""

    def __init__(self, leader_name: str) -> None:
        self._leader_name = leader_name
        self.address: Future[str] = Future()

    def announce(self, address: str) -> None:
        self.address.set_result(address)

    def give_up(self, reason: str) -> None:
        """There will be no address, unless it was said already."""
        if not self.address.done():
            self.address.set_exception(RankLost(reason, (0,)))

    def find(self) -> str:
        try:
            leader = ray.get_actor(self._leader_name)
            return str(ray.get(leader.meeting_point.remote(), timeout=MEETING_S))
        except (RayError, ValueError) as error:
            raise RankLost(f"the leader {self._leader_name} has said no address: {error}", (0,)) from error


class RankActor:
    """One rank in a process of its own. Ray calls its methods from several threads.

    start may be asked again, by a controller that was restarted: the answer is the same.
    """

    def __init__(self, config: ReplicaConfig, secret: bytes, rank: int, build: BuildRank, leader_name: str) -> None:
        open_log()
        self._config = config
        self._secret = secret
        self._rank_index = rank
        self._build = build
        self._rendezvous = _ActorRendezvous(leader_name)
        self._rank: RunningRank | None = None
        self._answer: RankStarted | RankRefused | None = None
        self._starting = threading.Lock()
        self._sentinel = threading.Event()

    def start(self) -> RankStarted | RankRefused:
        """Load the model, pass a canary token through it, and say where it listens."""
        with self._starting:
            if self._answer is None:
                try:
                    self._answer = self._start()
                except KvasirError as error:
                    self._rendezvous.give_up(str(error))
                    self._answer = RankRefused(message=str(error), can_heal=not isinstance(error, HOPELESS))
            return self._answer

    def _start(self) -> RankStarted:
        if self._config.engine.num_threads is not None:
            # Read when torch is loaded, which is below: replicas on one host must not fight for its cores.
            os.environ["OMP_NUM_THREADS"] = str(self._config.engine.num_threads)
        config = self._config if self._config.host else replace(self._config, host=own_address())
        self._rank = self._build(config, self._secret, self._rank_index, self._rendezvous)
        self._rank.start()
        # What is there now stays: looking through it again would stop the engine for 100 ms each time.
        gc.collect()
        gc.freeze()
        return RankStarted(endpoint=self._rank.endpoint, phases=self._rank.start_phases)

    def meeting_point(self) -> str:
        """Where this rank, which leads, waits for the others; as soon as it does."""
        return self._rendezvous.address.result(MEETING_S)

    def failure(self) -> str | None:
        """Why the rank is of no use any more; None while it is healthy or still starts."""
        return self._rank.failure() if self._rank is not None else None

    def num_streams(self) -> int:
        """Requests that it holds."""
        return self._rank.num_streams if self._rank is not None else 0

    def change_role(self, role: Role) -> None:
        """Call itself otherwise from now on; whatever it is doing goes on."""
        if self._rank is not None:
            self._rank.change_role(role)

    def wait_until_stopped(self) -> None:
        """Return after stop. While it hasn't, the pending answer fails the moment this process dies.

        One caller at a time: a new one is a restarted controller, and frees its predecessor's thread.
        """
        predecessor, self._sentinel = self._sentinel, threading.Event()
        predecessor.set()
        self._sentinel.wait()

    def stop(self) -> None:
        """Finish in order: threads joined, shared memory removed."""
        if self._rank is not None:
            self._rank.stop()
        self._sentinel.set()
