"""The one actor that keeps the cluster as it is wanted: observe, plan, act.

Its memory is what it finds: gangs are named, so that after its own death it takes the living ones over,
and Ray's table of placement groups remembers the names of the dead ones.
"""

import dataclasses
import logging
import os
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError

from kvasir_cluster.gang import Gang, GangSpec, find_groups, read_nodes
from kvasir_cluster.placement import check_fits
from kvasir_cluster.plan import (
    ObservedGang,
    Plan,
    Slot,
    SlotMemory,
    StartGang,
    StopGang,
    describe_phase,
    desired_slots,
    parse_replica,
    plan,
    recall,
    remember,
)
from kvasir_cluster.spec import ControllerSpec, Progress
from kvasir_cluster.view_server import ViewServer
from kvasir_protocol.config import PoolConfig, ReplicaConfig
from kvasir_protocol.errors import KvasirError
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ClusterView

log = logging.getLogger(__name__)

CONTROLLER_NAME = "controller"

CALLS_AT_ONCE = 4
"""Threads for progress and stop, so that neither waits for the other."""

KEPT_NEWS = 100

ADOPTION_S = 5.0
"""How long a restarted controller waits for the gangs that it found, before it serves a view of them."""


def create_controller(spec: ControllerSpec, *, detached: bool) -> Any:
    """A handle on the cluster's controller, created in the namespace of this Ray session.

    detached: it outlives this process, as does all that it creates; without, both end with the local Ray.
    """
    return (
        ray.remote(Controller)
        .options(
            name=CONTROLLER_NAME,
            lifetime="detached" if detached else None,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=CALLS_AT_ONCE,
        )
        .remote(spec)
    )


class Controller:
    """Runs inside a Ray actor; one thread decides, another serves the view."""

    def __init__(self, spec: ControllerSpec) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._spec = spec
        self._slots = desired_slots(spec.config.pools)
        self._pools = {pool.role: pool for pool in spec.config.pools}
        self._news: list[str] = []
        self._fatal: str | None = None
        self._observed: tuple[ObservedGang, ...] = ()
        # Milliseconds since 1970: a restarted controller's first version is above its predecessor's last.
        self._view = ClusterView(version=time.time_ns() // 1_000_000, replicas=(), phase="starting")
        self._gangs, self._memory = self._adopt()
        self._observe()
        self._stopping = threading.Event()
        self._server: ViewServer | None = None
        try:
            if not self._memory:
                check_fits(spec.config.pools, spec.resource, read_nodes())
            self._server = ViewServer(spec.secret, spec.view_host, spec.view_port, lambda: self._view)
            self._server.start()
        except KvasirError as error:
            self._fatal = str(error)
        self._loop = threading.Thread(target=self._run, name="controller", daemon=True)
        self._loop.start()

    def progress(self) -> Progress:
        """How far the cluster has come."""
        return Progress(
            process_id=os.getpid(),
            phase=self._view.phase,
            gangs=tuple((gang.replica_id, gang.state) for gang in self._observed),
            news=tuple(self._news),
            fatal=self._fatal,
        )

    def stop(self) -> None:
        """End every gang in order, by force those that take longer than stop_s, and stop serving the view."""
        self._stopping.set()
        self._loop.join()
        farewells = [reference for gang in self._gangs.values() for reference in gang.ask_to_stop()]
        if farewells:
            ray.wait(farewells, num_returns=len(farewells), timeout=self._spec.timings.stop_s)
        for gang in self._gangs.values():
            gang.tear_down()
        if self._server is not None:
            self._server.stop()

    def _adopt(self) -> tuple[dict[ReplicaId, Gang], dict[Slot, SlotMemory]]:
        """The gangs that a predecessor left, and the memory of all ids it ever gave out."""
        groups = find_groups(self._spec.name)
        gangs: dict[ReplicaId, Gang] = {}
        for replica_id in (replica_id for replica_id, exists in groups.items() if exists):
            gang = Gang.adopt(self._gang_spec(replica_id), time.monotonic())
            if gang is not None:
                gangs[replica_id] = gang
                self._tell(f"took over {replica_id}")
        # Until they have said where they listen, the view would tell routers that nobody serves.
        answers = [reference for gang in gangs.values() for reference in gang.unanswered_starts]
        if answers:
            ray.wait(answers, num_returns=len(answers), timeout=ADOPTION_S)
        return gangs, recall(groups)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() and self._fatal is None:
                self._step()
        except Exception:
            # Ray starts this process anew, and the new controller takes over what lives: better than a silent one.
            log.exception("the controller's loop died")
            os._exit(1)

    def _step(self) -> None:
        try:
            self._observe()
            self._act(self._plan())
            self._wait()
        except RayError as error:
            log.warning("Ray failed a step, trying again: %s", error)
            self._stopping.wait(self._spec.timings.poll_s)

    def _observe(self) -> None:
        """Look at every gang, and publish the view at once: nobody should be sent to a replica known as dead."""
        now_s = time.monotonic()
        self._observed = tuple(gang.observe(now_s) for gang in self._gangs.values())
        self._memory = remember(self._memory, self._observed, now_s, self._spec.pacing)
        serving = [self._gangs[gang.replica_id].address for gang in self._observed if gang.state == "ready"]
        view = dataclasses.replace(
            self._view,
            replicas=tuple(address for address in serving if address is not None),
            phase=describe_phase(self._slots, self._observed),
        )
        for address in view.replicas:
            if address not in self._view.replicas:
                self._tell(f"{address.replica_id} serves at {address.endpoint}")
        if view != self._view:
            self._view = dataclasses.replace(view, version=self._view.version + 1)

    def _plan(self) -> Plan:
        return plan(self._slots, self._observed, self._memory, time.monotonic())

    def _act(self, decision: Plan) -> None:
        for action in decision.actions:
            match action:
                case StartGang(replica_id):
                    self._tell(f"starting {replica_id}")
                    self._gangs[replica_id] = Gang.create(self._gang_spec(replica_id), time.monotonic())
                case StopGang(replica_id, reason):
                    self._tell(f"stopping {replica_id}: {reason}")
                    self._gangs.pop(replica_id).tear_down()
        self._fatal = decision.fatal

    def _wait(self) -> None:
        """Until something happens to a gang, or it is time to look anyway."""
        signals = [reference for gang in self._gangs.values() for reference in gang.signals]
        if signals:
            ray.wait(signals, timeout=self._spec.timings.poll_s)
        else:
            self._stopping.wait(self._spec.timings.poll_s)

    def _gang_spec(self, replica_id: ReplicaId) -> GangSpec:
        spec, pool = self._spec, self._pool_of(replica_id)
        replica = ReplicaConfig(
            replica_id=replica_id,
            role=pool.role,
            model=spec.config.model,
            engine=spec.config.engine,
            handover=spec.config.handover,
            host=spec.replica_host,
            segment_prefix=spec.name,
        )
        return GangSpec(
            replica=replica,
            pool=pool,
            resource=spec.resource,
            secret=spec.secret,
            build_rank=spec.build_rank,
            timings=spec.timings,
        )

    def _pool_of(self, replica_id: ReplicaId) -> PoolConfig:
        slot, _ = parse_replica(replica_id)
        return self._pools[slot.role]

    def _tell(self, news: str) -> None:
        log.info(news)
        self._news = [*self._news, news][-KEPT_NEWS:]
