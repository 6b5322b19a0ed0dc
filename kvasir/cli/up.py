"""`kvasir up` and `kvasir down`: a cluster in a Ray that runs already, as a file says."""

import argparse
import secrets
import sys
import time
from collections.abc import Iterable
from typing import Protocol

from kvasir.cli.confirm import confirm
from kvasir.cli.host import check_models
from kvasir.cli.options import DEMO_MODEL, settle_model
from kvasir.cli.phases import Phases
from kvasir.cli.setup import find_secret_file, read_log_level
from kvasir_cluster.actors import build_replica
from kvasir_cluster.changes import Change, find_changes
from kvasir_cluster.connection import answer, connect, end_controller, find_controller
from kvasir_cluster.creation import create_controller
from kvasir_cluster.gang import read_nodes
from kvasir_cluster.handle import ClusterHandle
from kvasir_cluster.hosts import Host, list_hosts
from kvasir_cluster.placement import check_fits
from kvasir_cluster.plan import READY, STOPPING
from kvasir_cluster.pools import resolve_over, resource_of
from kvasir_cluster.renames import check_same_models
from kvasir_cluster.report import ClusterReport, Progress
from kvasir_cluster.spec import ControllerSpec
from kvasir_protocol.config import ClusterConfig, load_config
from kvasir_protocol.errors import PlacementError, ServiceUnavailable
from kvasir_protocol.sockets import load_secret

POLL_S = 0.2

STOP_S = 60.0
"""Routers get 10 s to end what runs, replicas 5 s; the rest is slack for a busy cluster."""

SIGNS = {"create": "+", "change": "~", "remove": "-"}


def up(options: argparse.Namespace) -> int:
    """Make the cluster as the file says, and wait until it serves. Raises KvasirError."""
    wish = load_config(options.file, {"model": DEMO_MODEL}, _settle)
    phases = Phases(sys.stdout)
    with connect(options.address, wish.name):
        nodes = read_nodes()
        config = resolve_over(wish, nodes)
        _check_place(config)
        controller = find_controller()
        report: ClusterReport | None = answer(controller.report.remote()) if controller is not None else None
        if report is not None and report.progress.phase == STOPPING:
            raise ServiceUnavailable(f"{wish.name} is being taken away; `kvasir down` tells when that is done")
        if report is not None:
            check_same_models(report.wish, wish)
        changes = find_changes(report.wish if report is not None else None, wish)
        _show_plan(phases, wish, list_hosts(), changes)
        if changes and not confirm("Go ahead?", is_sure=options.yes):
            return 1
        if controller is None:
            controller = create_controller(_controller_spec(wish, config), detached=True, node_id=_head().node_id)
        elif changes or (report is not None and report.progress.fatal is not None):
            answer(controller.apply.remote(wish, config))
        num_told = len(report.progress.news) if report is not None else 0
        progress = wait_until_ready(phases, ClusterHandle(controller), num_told)
    phases.say(f"ready in {phases.total_s:.1f} s")
    _show_endpoints(phases, wish, progress)
    return 0


def _settle(config: ClusterConfig) -> ClusterConfig:
    """With absolute paths and all names, if its models can be served like this. Raises ConfigError."""
    wish = settle_model(config)
    check_models(wish)
    return wish


def _check_place(config: ClusterConfig) -> None:
    """Raise PlacementError, with what the cluster has, before anybody waits for what will never be."""
    nodes, resource = read_nodes(), resource_of(config)
    try:
        check_fits(config.pools, resource, nodes)
    except PlacementError as error:
        has = ", ".join(f"{node.address} {node.total.get(resource, 0):g}" for node in nodes)
        raise PlacementError(f"{error}. The cluster's {resource}s by host: {has or 'no host at all'}") from error


def _show_plan(phases: Phases, wish: ClusterConfig, hosts: list[Host], changes: Iterable[Change]) -> None:
    offers = [f"{sum(host.offers.get(kind, 0) for host in hosts):g} {kind}s" for kind in ("CPU", "GPU")]
    models = ", ".join(model.served_name for model in wish.all_models)
    phases.say(f"{wish.name}: {models} on {len(hosts)} hosts with {' and '.join(offers)}")
    lines = [f"  {SIGNS[change.kind]} {change.what}" for change in changes]
    for line in lines or ["  nothing changes"]:
        phases.say(line)


def _head() -> Host:
    head = next((host for host in list_hosts() if host.is_head), None)
    if head is None:
        raise ServiceUnavailable("this Ray cluster names no head; it must be of Ray 2.55 or newer")
    return head


def _controller_spec(wish: ClusterConfig, config: ClusterConfig) -> ControllerSpec:
    return ControllerSpec(
        # Two Rays may share a host, and then its shared memory.
        instance=f"{wish.name}-{secrets.token_hex(3)}",
        wish=wish,
        config=config,
        secret=load_secret(find_secret_file()),
        build_rank=build_replica,
        replica_host="",
        view_host="",
        view_port=0,
        places_routers=True,
        log_level=read_log_level(),
    )


class Answering(Protocol):
    """A controller, as `ClusterHandle` asks it."""

    def poll(self, timeout_s: float) -> Progress | None: ...


def wait_until_ready(phases: Phases, cluster: Answering, num_told: int) -> Progress:
    """Tell what happens, but for the first num_told news, until all serve.

    Raises ServiceUnavailable where that will not be before somebody does something.
    """
    with phases.spinner("waiting for replicas and routers"):
        while True:
            progress = cluster.poll(POLL_S)
            if progress is None:
                continue
            # A restarted controller's news begin anew.
            for news in progress.news[min(num_told, len(progress.news)) :]:
                phases.say(f"  {news}")
            num_told = len(progress.news)
            if progress.fatal is not None:
                raise ServiceUnavailable(f"{progress.fatal}. Correct the file and `kvasir up` again, or `kvasir down`")
            if progress.is_ready:
                return progress
            if progress.phase == READY and progress.router_failure is not None:
                raise ServiceUnavailable(
                    f"{progress.router_failure}. Put that right, and the cluster goes on by itself"
                )
            time.sleep(POLL_S)


def _show_endpoints(phases: Phases, wish: ClusterConfig, progress: Progress) -> None:
    for _, router in progress.routers:
        if router is not None:
            phases.say(f"listening on {router.url}/v1")
    if not wish.router.api_keys:
        phases.say("note: whoever reaches it may use it; router.api_keys asks for a key")


def down(options: argparse.Namespace) -> int:
    """Take away all that `up` made. Raises KvasirError."""
    phases = Phases(sys.stdout)
    with connect(options.address, options.name):
        controller = find_controller()
        if controller is None:
            phases.say(f"there is no cluster {options.name!r} here; nothing to take away")
            return 0
        report: ClusterReport = answer(controller.report.remote())
        _show_plan(phases, report.wish, list_hosts(), find_changes(report.wish, None))
        if not confirm("Take it away?", is_sure=options.yes):
            return 1
        with phases.spinner("ending routers and replicas"):
            end_controller(controller, STOP_S)
    phases.say(f"{options.name} is gone, after {phases.total_s:.1f} s")
    return 0
