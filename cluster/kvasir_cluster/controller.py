"""The one actor that keeps the cluster as it is wanted: observe, plan, act.

Its memory survives its own death: what is wanted lies in Ray's table on the head (`desired.py`), gangs are named, so
that it takes the living ones over, and Ray's table of placement groups remembers the names of the dead ones.
"""

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Iterable

import ray
from ray.exceptions import RayError

from kvasir_cluster.desired import Desired
from kvasir_cluster.desired_store import DesiredStore
from kvasir_cluster.drain import Drain
from kvasir_cluster.gang import Gang, GangSpec, end_gangs, find_groups, read_nodes, remove_group
from kvasir_cluster.hosts import list_hosts
from kvasir_cluster.logs import open_log
from kvasir_cluster.placement import check_fits
from kvasir_cluster.plan import (
    STOPPING,
    Action,
    DrainGang,
    ObservedGang,
    Plan,
    ReassignGang,
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
from kvasir_cluster.pools import resource_of
from kvasir_cluster.published_view import PublishedView
from kvasir_cluster.recipe import recipe_of
from kvasir_cluster.report import ClusterReport, GangReport, Progress
from kvasir_cluster.router_process import DRAIN_S, RouterOrder
from kvasir_cluster.routers import RouterKeeper
from kvasir_cluster.spec import ControllerSpec
from kvasir_cluster.sweep import sweep_segments
from kvasir_protocol.config import ClusterConfig
from kvasir_protocol.errors import KvasirError, ServiceUnavailable
from kvasir_protocol.ids import ReplicaId

log = logging.getLogger(__name__)

KEPT_NEWS = 100

ADOPTION_S = 5.0
"""How long a restarted controller waits for the gangs that it found, before it serves a view of them."""

RETRY_S = 2.0
"""Between tries to take over what could not be."""

FAREWELL_S = 2.0
"""For the answer that all has ended to leave, before the controller ends itself."""

SWEEP_S = 10.0
"""For hosts to take away shared memory, at the end."""


class Controller:
    """Runs inside a Ray actor; one thread decides, another serves the view."""

    def __init__(self, spec: ControllerSpec) -> None:
        open_log()
        self._spec = spec
        self._store = DesiredStore(spec.name)
        self._desired = Desired(config=spec.wish, resolved=spec.config, view_port=spec.view_port)
        self._itself = ray.get_runtime_context().current_actor
        self._turn = threading.Lock()
        self._news: list[str] = []
        self._fatal: str | None = None
        self._observed: tuple[ObservedGang, ...] = ()
        self._drains: dict[ReplicaId, Drain] = {}
        self._view = PublishedView(spec.secret, spec.view_host, spec.timings.bind_s)
        self._gangs: dict[ReplicaId, Gang] = {}
        self._memory: dict[Slot, SlotMemory] = {}
        self._has_taken_over = False
        self._stopping = threading.Event()
        self._ending = threading.Lock()
        self._has_ended = False
        self._routers = RouterKeeper(spec.name)
        self._try_to_take_over()
        self._loop = threading.Thread(target=self._run, name="controller", daemon=True)
        self._loop.start()

    def _try_to_take_over(self) -> None:
        """Whatever fails is told, and tried again by the loop: an actor whose constructor fails is never started again,
        and nobody could take away what it had found."""
        try:
            self._take_over()
        except Exception as error:
            log.exception("could not take over")
            self._fatal = f"the controller can't take over what is there: {type(error).__name__}: {error}"

    def _take_over(self) -> None:
        """Make what a predecessor left its own, and serve the view of it. Raises whatever goes wrong."""
        self._desired = self._store.load() or self._desired
        self._gangs, self._memory = self._adopt()
        if self._spec.places_routers:
            self._routers.adopt()
        self._observe()
        self._has_taken_over, self._fatal = True, None
        if self._desired.is_ending:
            return
        try:
            if not self._memory:
                self._check_fits(self._spec.config)
            self._serve_view()
        except KvasirError as error:
            self._fatal = str(error)

    def apply(self, wish: ClusterConfig, config: ClusterConfig) -> None:
        """Want something else from now on, and begin at once; config is wish, settled for the hosts.

        The same wish changes nothing, unless it proved fatal: then it is tried again. Raises ConfigError for what can't
        be wanted now, and goes on as before: somebody else may have changed what is wanted since the caller looked.
        """
        with self._turn:
            if self._stopping.is_set():
                raise ServiceUnavailable("the cluster is being taken away")
            if not self._has_taken_over:
                self._take_over()
            if wish == self._desired.config and self._fatal is None:
                return
            self._want(self._desired.wanting(wish, config))
            if self._view.endpoint is None:
                self._serve_view()
            self._fatal = None
            self._tell("new settings")
            self._step()
            self._observe()

    def progress(self) -> Progress:
        """How far the cluster has come."""
        observed = self._observed
        return Progress(
            process_id=os.getpid(),
            phase=self._view.phase,
            gangs=tuple((gang.replica_id, gang.state) for gang in observed),
            start_phases=tuple(gang.start_phases for gang in observed),
            news=tuple(self._news),
            routers=self._routers.states,
            fatal=self._fatal,
        )

    def report(self) -> ClusterReport:
        """All that there is to know, for a person."""
        gangs = {**self._gangs, **{replica_id: drain.gang for replica_id, drain in self._drains.items()}}
        pools = {record.replica_id: record.pool.name for record in self._desired.gangs}
        return ClusterReport(
            instance=self._spec.instance,
            wish=self._desired.config,
            progress=self.progress(),
            gangs=tuple(
                GangReport(
                    replica_id=observed.replica_id,
                    pool=pools[observed.replica_id],
                    state=observed.state,
                    is_outdated=observed.is_outdated,
                    hosts=tuple(gangs[observed.replica_id].where()) if observed.replica_id in gangs else (),
                )
                for observed in self._observed
                if observed.replica_id in pools  # it may have ended just now
            ),
        )

    def stop(self) -> None:
        """End every router and gang in order, by force those that take longer than stop_s; stop serving the view.

        Who asks again waits for the first. Afterwards this actor ends by itself, in case who asked does not end it.
        """
        with self._ending:
            if not self._has_ended:
                self._end_all()
                self._has_ended = True
                timer = threading.Timer(FAREWELL_S, lambda: ray.kill(self._itself, no_restart=True))
                timer.daemon = True
                timer.start()

    def _end_all(self) -> None:
        with self._turn:  # what was asked for before is done first
            self._stopping.set()
        self._loop.join()
        # Only now: its last step tells a phase, too.
        self._view.tell_phase(STOPPING)
        # Should this process die before the end, the next one goes on with it.
        self._want(dataclasses.replace(self._desired, is_ending=True))
        if self._spec.places_routers:
            self._routers.adopt()
        self._routers.stop(DRAIN_S)
        gangs = [*self._gangs.values(), *(drain.gang for drain in self._drains.values())]
        end_gangs(self._spec.name, gangs, self._spec.timings.stop_s)
        sweeps = sweep_segments(f"{self._spec.name}-", self._other_hosts(host.node_id for host in list_hosts()))
        if sweeps:
            ray.wait(sweeps, num_returns=len(sweeps), timeout=SWEEP_S)
        self._store.remove()
        self._view.stop()

    def _serve_view(self) -> None:
        wanted = self._desired.view_port
        # Whoever has routers of its own can't be told of another port.
        port = self._view.serve(wanted, may_move=self._spec.places_routers)
        if wanted not in (0, port):
            self._tell(f"port {wanted} is somebody else's by now; routers are told another")
        self._want(dataclasses.replace(self._desired, view_port=port))

    def _adopt(self) -> tuple[dict[ReplicaId, Gang], dict[Slot, SlotMemory]]:
        """The gangs that a predecessor left, and the memory of all ids it ever gave out."""
        groups = find_groups(self._spec.name)
        known = {record.replica_id for record in self._desired.gangs}
        gangs: dict[ReplicaId, Gang] = {}
        for replica_id in (replica_id for replica_id, exists in groups.items() if exists):
            if replica_id not in known:
                remove_group(self._spec.name, replica_id)
            elif gang := Gang.adopt(self._recipe(replica_id), time.monotonic()):
                gangs[replica_id] = gang
                gang.take_role(self._desired.record(replica_id).slot.role)
                self._tell(f"took over {replica_id}")
        kept = tuple(record for record in self._desired.gangs if record.replica_id in gangs)
        self._want(dataclasses.replace(self._desired, gangs=kept))
        # Until they have said where they listen, the view would tell routers that nobody serves.
        answers = [reference for gang in gangs.values() for reference in gang.unanswered_starts]
        if answers:
            ray.wait(answers, num_returns=len(answers), timeout=ADOPTION_S)
        return gangs, recall(groups)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    with self._turn:
                        if not self._has_taken_over:
                            self._try_to_take_over()
                        elif self._desired.is_ending:
                            threading.Thread(target=self.stop, name="end", daemon=True).start()
                            return
                        else:
                            self._step()
                    self._wait()
                except RayError as error:
                    log.warning("Ray failed a step, trying again: %s", error)
                    self._stopping.wait(self._spec.timings.poll_s)
        except Exception:
            # Ray starts this process anew, and the new controller takes over what lives: better than a silent one.
            log.exception("the controller's loop died")
            os._exit(1)

    def _step(self) -> None:
        """Observe, plan, act."""
        self._observe()
        self._act(self._plan())
        self._keep_routers()

    def _observe(self) -> None:
        """Look at every gang, and publish the view at once: nobody should be sent to a replica known as dead."""
        now_s = time.monotonic()
        self._observed = (
            *(self._recognise(gang.observe(now_s)) for gang in self._gangs.values()),
            *(drain.observed for drain in self._drains.values()),
        )
        self._memory = remember(self._memory, self._observed, now_s, self._spec.pacing)
        serving = [self._gangs[gang.replica_id].address for gang in self._observed if gang.state == "ready"]
        shown = self._desired.shown(address for address in serving if address is not None)
        for address in self._view.show(shown, describe_phase(self._slots, self._observed)):
            self._tell(f"{address.replica_id} serves at {address.endpoint}")

    def _recognise(self, gang: ObservedGang) -> ObservedGang:
        """With what the records say of it."""
        record = self._desired.record(gang.replica_id)
        return dataclasses.replace(gang, reassigned=record.reassigned, fits=self._desired.fits(record))

    def _plan(self) -> Plan:
        now_s = time.monotonic()
        return plan(self._slots, self._observed, self._memory, now_s, may_start_new=self._fatal is None)

    def _act(self, decision: Plan) -> None:
        for action in decision.actions:
            self._take(action)
        for replica_id in [key for key, drain in self._drains.items() if drain.is_over(time.monotonic())]:
            self._end(replica_id, self._drains[replica_id].gang)
            del self._drains[replica_id]
            self._tell(f"{replica_id} has ended")
        self._fatal = self._fatal or decision.fatal

    def _take(self, action: Action) -> None:
        match action:
            case StartGang(replica_id):
                self._tell(f"starting {replica_id}")
                self._want(self._desired.with_gang(replica_id, parse_replica(replica_id)[0]))
                self._gangs[replica_id] = Gang.create(self._recipe(replica_id), time.monotonic())
            case StopGang(replica_id, reason):
                self._tell(f"stopping {replica_id}: {reason}")
                self._end(replica_id, self._gangs[replica_id])
                del self._gangs[replica_id]
            case DrainGang(replica_id, reason):
                self._tell(f"draining {replica_id}: {reason}")
                observed = next(gang for gang in self._observed if gang.replica_id == replica_id)
                leaving = dataclasses.replace(observed, state="draining")
                gang = self._gangs.pop(replica_id)
                self._drains[replica_id] = Drain(gang, leaving, time.monotonic(), self._spec.timings)
            case ReassignGang(replica_id, slot):
                self._tell(f"{replica_id} is {slot.role} from now on")
                self._want(self._desired.with_slot(replica_id, slot))
                self._gangs[replica_id].take_role(slot.role)

    def _end(self, replica_id: ReplicaId, gang: Gang) -> None:
        """Leave nothing of it on any host."""
        hosts = set(gang.where())
        gang.tear_down()
        self._want(self._desired.without_gang(replica_id))
        sweep_segments(f"{self._spec.name}-{replica_id}-", self._other_hosts(hosts))

    def _other_hosts(self, node_ids: Iterable[str]) -> list[str]:
        here = ray.get_runtime_context().get_node_id()
        return [node_id for node_id in node_ids if node_id != here]

    def _keep_routers(self) -> None:
        if not self._spec.places_routers or self._view.endpoint is None:
            return
        order = RouterOrder.of(
            self._desired.resolved,
            secret=self._spec.secret,
            controller_endpoint=self._view.endpoint,
            log_level=self._spec.log_level,
        )
        for news in self._routers.keep(order, time.monotonic()):
            self._tell(news)

    def _wait(self) -> None:
        """Until something happens to a gang, or it is time to look anyway."""
        if not self._has_taken_over:
            self._stopping.wait(RETRY_S)
            return
        signals = [reference for gang in list(self._gangs.values()) for reference in gang.signals]
        if signals:
            ray.wait(signals, timeout=self._spec.timings.poll_s)
        else:
            self._stopping.wait(self._spec.timings.poll_s)

    def _recipe(self, replica_id: ReplicaId) -> GangSpec:
        return recipe_of(replica_id, self._spec, self._desired)

    @property
    def _slots(self) -> tuple[Slot, ...]:
        return desired_slots(self._desired.resolved.pools)

    def _check_fits(self, config: ClusterConfig) -> None:
        check_fits(config.pools, resource_of(config), read_nodes())

    def _want(self, desired: Desired) -> None:
        """Change what is wanted or known, and never forget it."""
        self._desired = desired
        self._store.save(desired)

    def _tell(self, news: str) -> None:
        log.info(news)
        self._news = [*self._news, news][-KEPT_NEWS:]
