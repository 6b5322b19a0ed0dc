"""Asks hosts of a Ray cluster how they are, from inside."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kvasir_cluster.doctor import Finding
from kvasir_cluster.host_facts import HostFacts, find_facts
from kvasir_cluster.hosts import Host
from kvasir_cluster.probe import describe_error

START_S = 30.0
CONNECT_S = 3.0
COLLECTIVE_S = 60.0
"""Loading torch on a busy host takes most of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a host listens for a moment."""

    name: str
    address: str
    port: int


class Prober:
    """Runs in an actor on the host that it looks at."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._listener: socket.socket | None = None

    def facts(self) -> HostFacts:
        return find_facts(self._address)

    def listen(self) -> int:
        """Listen on a port of the system's choosing, as replicas do; the port."""
        self._listener = socket.create_server((self._address, 0), backlog=1024)
        return int(self._listener.getsockname()[1])

    def free_port(self) -> int:
        """A port on which nobody listens at this moment."""
        with socket.create_server((self._address, 0)) as probe:
            return int(probe.getsockname()[1])

    def find_unreachable(self, targets: Sequence[Target]) -> list[tuple[str, str]]:
        """Names and reasons of those that can't be connected to."""
        failures = []
        for target in targets:
            try:
                socket.create_connection((target.address, target.port), CONNECT_S).close()
            except OSError as error:
                failures.append((target.name, str(error)))
        return failures

    def run(self, check: Callable[[Any], float], argument: object) -> float:
        return check(argument)


class ProbedHosts:
    """A prober on every host, until `close`. facts: of those that answered, in their order; lost: of the others."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.lost: list[Finding] = []
        self._probers: list[tuple[Host, Any]] = []
        probers = [(host, _create(host)) for host in hosts]
        self.facts: list[HostFacts] = []
        answers = [(host, prober, prober.facts.remote()) for host, prober in probers]
        for host, prober, answer in answers:
            try:
                self.facts.append(ray.get(answer, timeout=START_S))
                self._probers.append((host, prober))
            except RayError as error:
                self.lost.append(_lost(host, error))

    def find_unreachable(self) -> list[tuple[str, str, str]]:
        """(from, to, reason) for every pair that can't connect."""
        ports = ray.get([prober.listen.remote() for _, prober in self._probers], timeout=START_S)
        targets = [
            Target(name=host.name, address=host.address, port=port)
            for (host, _), port in zip(self._probers, ports, strict=True)
        ]
        answers = [prober.find_unreachable.remote(targets) for _, prober in self._probers]
        # Each target may take its whole patience.
        found = ray.get(answers, timeout=START_S + CONNECT_S * len(targets))
        return [
            (host.name, name, reason)
            for (host, _), failures in zip(self._probers, found, strict=True)
            for name, reason in failures
        ]

    def rendezvous(self, index: int) -> str:
        """HOST:PORT on a host for processes to meet at."""
        host, prober = self._probers[index]
        return f"{host.address}:{ray.get(prober.free_port.remote(), timeout=START_S)}"

    def run_together(self, check: Callable[[Any], float], arguments: Mapping[int, object]) -> float:
        """Run check on hosts at once, each with its argument, by index; the longest answer. Raises RayError."""
        answers = [self._probers[index][1].run.remote(check, argument) for index, argument in arguments.items()]
        return float(max(ray.get(answers, timeout=COLLECTIVE_S)))

    def close(self) -> None:
        for _, prober in self._probers:
            ray.kill(prober)


def _create(host: Host) -> Any:
    strategy = NodeAffinitySchedulingStrategy(host.node_id, soft=False)
    return ray.remote(Prober).options(num_cpus=0, scheduling_strategy=strategy).remote(host.address)


def _lost(host: Host, error: RayError) -> Finding:
    reason = "no answer" if isinstance(error, GetTimeoutError) else describe_error(error)
    return Finding(
        what=f"{host.name} ({host.address}) runs no process of ours: {reason}",
        fix="install the same Kvasir there as here, then `ray stop` and start Ray there again",
    )


def describe_failure(error: RayError) -> Finding:
    """Of `run_together`."""
    reason = f"no end within {COLLECTIVE_S:g} s" if isinstance(error, GetTimeoutError) else describe_error(error)
    return Finding(
        what=f"hosts can't compute together: {reason}",
        fix="open all TCP ports between them, and see that the card named above is in their common network",
    )
