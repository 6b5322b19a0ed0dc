"""A cluster as tables for the terminal. Pure."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from kvasir.cli.status import LOAD_COLUMNS, load_cells, new_table
from kvasir_cluster.hosts import Host
from kvasir_cluster.report import ClusterReport, GangReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A cluster at one moment. status: the answer of a router's /status, None if none could be reached."""

    taken_at_s: float
    report: ClusterReport
    hosts: tuple[Host, ...]
    status: dict[str, Any] | None

    def stats(self) -> dict[str, dict[str, Any]]:
        """By replica, of those that have told."""
        replicas = self.status["replicas"] if self.status is not None else []
        return {replica["id"]: replica["stats"] for replica in replicas if replica["stats"] is not None}

    def host_names(self) -> dict[str, str]:
        return {host.node_id: host.name for host in self.hosts}


def headline(now: Snapshot) -> str:
    """One line that says how it is."""
    progress = now.report.progress
    trouble = f"; {progress.fatal}" if progress.fatal is not None else ""
    models = ", ".join(model.served_name for model in now.report.wish.all_models)
    return f"{now.report.wish.name}: {models}, {progress.phase}{trouble}"


def gang_table(before: Snapshot, now: Snapshot) -> Table:
    """One row per replica, in the order of the pools; rates since the snapshot before."""
    table = new_table(("replica", "pool", "state", "ranks on hosts"), LOAD_COLUMNS)
    earlier, stats, names = before.stats(), now.stats(), now.host_names()
    seconds = now.taken_at_s - before.taken_at_s
    for gang in sorted(now.report.gangs, key=_order):
        state = f"{gang.state}, outdated" if gang.is_outdated else gang.state
        load = load_cells(stats.get(gang.replica_id), earlier.get(gang.replica_id), seconds)
        table.add_row(gang.replica_id, gang.pool, state, _describe_ranks(gang, names), *load)
    return table


def _order(gang: GangReport) -> tuple[str, bool, str, str]:
    """Model by model, prefill before decode."""
    model, _, role = gang.pool.rpartition("/")
    return model, role != "prefill", role, gang.replica_id


def _describe_ranks(gang: GangReport, names: dict[str, str]) -> str:
    """Such as `4 on h1, 4 on h2`; only the host's name for a replica of one rank."""
    if not gang.hosts:
        return "-"
    counts = Counter(names.get(node_id, "a lost host") for node_id in gang.hosts)
    if len(gang.hosts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} on {name}" for name, count in counts.items())


def router_table(now: Snapshot) -> Table:
    """One row per router that the cluster placed."""
    table = new_table(("router on", "answers at", "state"), ("reaches replicas",))
    for address, router in now.report.progress.routers:
        if router is None:
            table.add_row(address, "-", "starting", "-")
        else:
            state = router.failure or ("up" if router.num_live is not None else "starting")
            table.add_row(address, router.url or "-", state, "-" if router.num_live is None else str(router.num_live))
    return table


def host_table(now: Snapshot) -> Table:
    """One row per host, with what it offers and how many ranks it has of this cluster."""
    table = new_table(("host", "address", "is"), ("CPUs", "GPUs", "ranks"))
    ranks = Counter(node_id for gang in now.report.gangs for node_id in gang.hosts)
    for host in now.hosts:
        offers = [f"{host.offers.get(kind, 0):g}" for kind in ("CPU", "GPU")]
        table.add_row(host.name, host.address, "head" if host.is_head else "worker", *offers, str(ranks[host.node_id]))
    return table
