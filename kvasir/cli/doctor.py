"""`kvasir doctor`: what is wrong with the hosts of a cluster, and how to put it right."""

import argparse
import socket
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from ray.exceptions import RayError
from rich.console import Console

from kvasir_cluster.connection import connect
from kvasir_cluster.doctor import Finding, judge_hosts, judge_reach
from kvasir_cluster.host_facts import HostFacts, find_facts
from kvasir_cluster.hosts import list_hosts
from kvasir_cluster.prober import ProbedHosts, describe_failure
from kvasir_cluster.ray_file import check_ssh, judge_ray_file, read_ray_file

if TYPE_CHECKING:
    from kvasir_workers.collective_check import Backend

PROBE_NAMESPACE = "doctor"


def examine(options: argparse.Namespace) -> int:
    """Print what is found; 1 if there is something to put right. Raises KvasirError for what can't be looked at."""
    console = Console(highlight=False, soft_wrap=True)
    num_wrong = 0
    for finding in _findings(options):
        num_wrong += not finding.is_well
        mark = "[green]ok [/green]" if finding.is_well else "[bold red]FIX[/bold red]"
        console.print(mark, end=" ")
        console.print(finding.what, markup=False)
        if not finding.is_well:
            console.print(f"    -> {finding.fix}", markup=False)
    console.print(f"{num_wrong} to put right" if num_wrong else "nothing to put right")
    return 1 if num_wrong else 0


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    if options.ray_file is not None:
        file = read_ray_file(options.ray_file)
        yield from judge_ray_file(file)
        yield from check_ssh(file)
    if options.address is not None:
        yield from _of_cluster(options.address)
    elif options.ray_file is None:
        yield from judge_hosts([find_facts(_own_address())])


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _of_cluster(address: str) -> Iterator[Finding]:
    with connect(address, PROBE_NAMESPACE):
        probed = ProbedHosts(list_hosts())
        try:
            yield from probed.lost
            yield from judge_hosts(probed.facts)
            yield from judge_reach(probed.find_unreachable(), len(probed.facts))
            for backend in _backends(probed.facts):
                yield from _compute_together(probed, backend)
        finally:
            probed.close()


def _backends(hosts: Iterable[HostFacts]) -> list["Backend"]:
    """What ranks may talk over: gloo everywhere, NCCL where every host but a head without any has GPUs."""
    with_gpus = [host for host in hosts if host.num_gpus]
    return ["gloo", "nccl"] if len(with_gpus) > 1 else ["gloo"]


def _compute_together(probed: ProbedHosts, backend: "Backend") -> Iterator[Finding]:
    # Brings torch: not before the quick findings are on the screen.
    from kvasir_workers.collective_check import CheckPlace, time_all_reduce

    chosen = [index for index, host in enumerate(probed.facts) if backend == "gloo" or host.num_gpus]
    place = partial(CheckPlace, world_size=len(chosen), endpoint=probed.rendezvous(chosen[0]), backend=backend)
    places = {
        index: place(rank=rank, interface=probed.facts[index].interface() or "") for rank, index in enumerate(chosen)
    }
    try:
        seconds = probed.run_together(time_all_reduce, places)
    except RayError as error:
        yield describe_failure(error)
    else:
        yield Finding(what=f"{backend}: {len(chosen)} hosts add up 1 MiB in {1000 * seconds:.1f} ms")
