"""What is wrong with hosts, and how to put it right. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvasir_cluster.host_facts import HostFacts

MIN_SHARED_MEMORY_BYTES = 2**30
"""Pages that replicas of one host hand to each other lie there; Docker gives 64 MiB unless told."""

MIN_OPEN_FILES = 4096
"""A router has a descriptor for each client and replica, and is made for thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """fix: what to do, or "" if all is well."""

    what: str
    fix: str = ""

    @property
    def is_well(self) -> bool:
        return not self.fix


def judge_hosts(hosts: Sequence[HostFacts]) -> Iterator[Finding]:
    """One or more findings for each thing that hosts of a cluster must have, or must have alike."""
    yield from _judge_versions(hosts)
    for host in hosts:
        yield _judge_address(host, is_alone=len(hosts) == 1)
        yield _judge_shared_memory(host)
        yield _judge_open_files(host)


def _judge_versions(hosts: Sequence[HostFacts]) -> Iterator[Finding]:
    by_package: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for host in hosts:
        for package, version in host.versions:
            by_package[package][version].append(host.name)
    for package, versions in by_package.items():
        if "missing" in versions:
            names = ", ".join(versions["missing"])
            yield Finding(what=f"{package} is missing on {names}", fix=f"install {package} there")
        elif len(versions) > 1:
            differing = "; ".join(f"{version} on {', '.join(names)}" for version, names in versions.items())
            yield Finding(what=f"{package}: {differing}", fix=f"install the same {package} on every host")
        else:
            yield Finding(what=f"{package} {next(iter(versions))} on every host")


def _judge_address(host: HostFacts, *, is_alone: bool) -> Finding:
    what = f"{host.name} is {host.address}"
    if host.address.startswith("127.") and not is_alone:
        return Finding(
            what=f"{what}, which no other host reaches",
            fix=f"start Ray on {host.name} with --node-ip-address and an address of its network",
        )
    interface = host.interface()
    if interface is None:
        cards = ", ".join(f"{name} {address}" for name, address in host.interfaces) or "none"
        return Finding(
            what=f"{what}, which none of its network cards has ({cards})",
            fix=f"start Ray on {host.name} with --node-ip-address and one of these",
        )
    return Finding(what=f"{what}, on {interface}")


def _judge_shared_memory(host: HostFacts) -> Finding:
    what = (
        f"{host.name} has {_gib(host.shared_memory_bytes)} of shared memory, {_gib(host.free_shared_memory_bytes)} free"
    )
    if host.shared_memory_bytes < MIN_SHARED_MEMORY_BYTES:
        return Finding(
            what=what, fix="mount -o remount,size=8g /dev/shm there; in a container, start it with --shm-size=8g"
        )
    return Finding(what=what)


def _judge_open_files(host: HostFacts) -> Finding:
    what = f"{host.name} lets a process open {host.max_open_files} files"
    if host.max_open_files < MIN_OPEN_FILES:
        return Finding(what=what, fix=f"ulimit -n 65536 on {host.name}, before Ray starts")
    return Finding(what=what)


def judge_reach(failures: Sequence[tuple[str, str, str]], num_hosts: int) -> Iterator[Finding]:
    """failures: (from, to, reason) for every pair of hosts of which the first could not connect to the second."""
    if num_hosts > 1 and not failures:
        yield Finding(what=f"each of {num_hosts} hosts can connect to each other")
    for origin, goal, reason in failures:
        yield Finding(
            what=f"{origin} can't connect to {goal}: {reason}",
            fix=f"let {origin} reach all TCP ports of {goal} (firewall, security group, route)",
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
