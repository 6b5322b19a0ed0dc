"""`kvasir serve`: a whole cluster on this host, for as long as this process lives."""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from kvasir.cli.descendants import adopt_orphans, kill_descendants
from kvasir.cli.examples import describe, show_examples
from kvasir.cli.phases import Phases
from kvasir.cli.setup import Setup, prepare
from kvasir.cli.signals import StopRequested, StopSignals
from kvasir_cluster.listening import url_of
from kvasir_cluster.local_ray import LOOPBACK, LocalRay, settle_ray
from kvasir_cluster.pools import num_ranks, num_replicas
from kvasir_cluster.router_process import DRAIN_S, RouterOrder, RouterProcess, router_command
from kvasir_protocol.errors import ServiceUnavailable
from kvasir_protocol.sockets import load_secret

if TYPE_CHECKING:
    from kvasir_cluster.handle import ClusterHandle
    from kvasir_cluster.report import Progress
    from kvasir_cluster.spec import ControllerSpec

POLL_S = 0.1
START_POLL_S = 0.05
WATCH_S = 0.5

CLUSTER_STOP_S = 20.0
"""Replicas get 5 s to stop in order; the rest is slack for a busy host."""

ORPHANS_STOP_S = 6.0
"""The same when Ray has died: replicas still hear the controller, but nothing else that it does will end."""


def serve(options: argparse.Namespace) -> int:
    """Start everything, serve until somebody wants it to end, leave nothing behind. Raises KvasirError."""
    adopt_orphans()
    stop = StopSignals()
    stop.install()
    phases = Phases(sys.stdout)
    with prepare(options) as setup, _ray_muted(setup):
        server = LocalServer(setup, stop, phases)
        try:
            server.start()
            server.watch()
        except StopRequested:
            return 0
        finally:
            server.end()


@contextlib.contextmanager
def _ray_muted(setup: Setup) -> Iterator[None]:
    """Ray prints a paragraph to sys.stdout for each process that dies, whatever it was told about logs."""
    if setup.shows_ray_logs:
        yield
        return
    with (setup.instance.directory / "ray-says").open("w") as file, contextlib.redirect_stdout(file):
        yield


class LocalServer:
    """The processes of one `kvasir serve`. Every method but `end` raises StopRequested when somebody wants the end."""

    def __init__(self, setup: Setup, stop: StopSignals, phases: Phases) -> None:
        self._setup = setup
        self._stop = stop
        self._phases = phases
        self._router = RouterProcess(router_command(_router_order(setup), setup.listener), setup.listener)
        self._ray = LocalRay(setup.instance.id, setup.instance.directory)
        self._cluster: ClusterHandle | None = None
        self._num_news = 0

    def start(self) -> None:
        """Return when requests are answered. Raises ServiceUnavailable if that will never be."""
        self._stop.check()
        config = self._setup.config
        self._phases.say(describe(config))
        self._router.start()
        with self._phases.phase("ray"):
            self._start_ray()
        with self._phases.spinner("replicas"):
            self._start_cluster()
        with self._phases.phase("router"):
            self._wait_for_router()
        self._phases.say(f"ready in {self._phases.total_s:.1f} s")
        show_examples(self._phases, config, url_of(self._setup.listener))

    def _start_ray(self) -> None:
        settle_ray()
        hardware, pools = self._setup.hardware, self._setup.config.pools
        try:
            self._ray.start(
                num_cpus=max(hardware.num_cores, num_ranks(pools)),
                num_gpus=hardware.num_gpus,
                show_logs=self._setup.shows_ray_logs,
            )
        except SystemExit:
            # Ray's own handler of SIGTERM, while Ray starts.
            raise StopRequested from None
        except (RuntimeError, OSError, ValueError) as error:
            first_line = str(error).strip().partition("\n")[0]
            raise ServiceUnavailable(f"Ray did not start: {first_line}") from error
        finally:
            self._stop.install()
        self._stop.check()

    def _start_cluster(self) -> None:
        """Create the controller, and show each replica when it serves."""
        from kvasir_cluster.creation import create_controller
        from kvasir_cluster.handle import ClusterHandle

        started_at = time.monotonic()
        self._cluster = ClusterHandle(create_controller(self._controller_spec(), detached=False))
        shown: set[str] = set()
        progress: Progress | None = None
        while progress is None or not progress.is_ready:
            # Answers come at once: without a pause, asking would take a core from the replicas that start.
            self._stop.wait(START_POLL_S)
            self._router.keep_alive()
            progress = self._cluster.poll(POLL_S)
            if progress is None:
                continue
            self._check(progress)
            for (replica_id, state), start_phases in zip(progress.gangs, progress.start_phases, strict=True):
                if state == "ready" and replica_id not in shown:
                    shown.add(replica_id)
                    for phase in start_phases:
                        self._phases.done(f"{phase.name} of {replica_id}", phase.seconds)
                    self._phases.done(replica_id, time.monotonic() - started_at)

    def _controller_spec(self) -> "ControllerSpec":
        from kvasir_cluster.actors import build_replica
        from kvasir_cluster.spec import ControllerSpec

        return ControllerSpec(
            instance=self._setup.instance.id,
            wish=self._setup.config,
            config=self._setup.config,
            secret=load_secret(self._setup.secret_file),
            build_rank=build_replica,
            replica_host=LOOPBACK,
            view_host=LOOPBACK,
            view_port=self._setup.control_port,
        )

    def _check(self, progress: "Progress") -> None:
        self._num_news = len(progress.news)
        if progress.fatal is not None:
            raise ServiceUnavailable(progress.fatal)

    def _wait_for_router(self) -> None:
        while True:
            health = self._router.health()
            if health is not None and health.num_live >= num_replicas(self._setup.config.pools):
                return
            self._router.keep_alive()
            self._stop.wait(POLL_S)

    def watch(self) -> NoReturn:
        """Tell what happens, for ever. Raises ServiceUnavailable when the server can't go on."""
        assert self._cluster is not None, "watched before it was started"
        while True:
            self._stop.wait(WATCH_S)
            if process := self._ray.find_death():
                raise ServiceUnavailable(f"Ray's {process} died")
            if self._router.keep_alive():
                self._phases.say("the router died; started it again")
            progress = self._cluster.poll(0)
            if progress is None:
                continue
            # A restarted controller's news begin anew.
            for news in progress.news[min(self._num_news, len(progress.news)) :]:
                self._phases.say(news)
            self._check(progress)

    def end(self) -> None:
        """End what was started, last first: the router, so that it can drain, then the replicas, then Ray."""
        try:
            if self._stop.num_requests:
                self._phases.say("stopping; once more to cut the answers that still run")
            self._drain_router()
            if self._cluster is not None:
                self._cluster.stop(CLUSTER_STOP_S if self._ray.find_death() is None else ORPHANS_STOP_S)
        finally:
            self._ray.stop()
            kill_descendants()

    def _drain_router(self) -> None:
        self._router.ask_to_stop()
        give_up_at = time.monotonic() + DRAIN_S
        num_requests = self._stop.num_requests
        while not self._router.has_stopped() and time.monotonic() < give_up_at:
            if self._stop.num_requests > num_requests:
                return
            time.sleep(POLL_S)


def _router_order(setup: Setup) -> RouterOrder:
    return RouterOrder.of(
        setup.config,
        secret=load_secret(setup.secret_file),
        controller_endpoint=setup.controller_endpoint,
        log_level=setup.log_level,
    )
