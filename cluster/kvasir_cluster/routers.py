"""Keeps a router on every host that should have one."""

import contextlib
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kvasir_cluster.hosts import Host, list_hosts
from kvasir_cluster.probe import describe_error
from kvasir_cluster.router_host import RouterHost, RouterState
from kvasir_cluster.router_process import RouterOrder

PERIOD_S = 0.5
"""Between two looks at the hosts and their routers."""

CALLS_AT_ONCE = 4


@dataclass(slots=True)
class _Place:
    """A host's actor; answer: Ray's reference to its next state, if it was asked."""

    host: Host
    actor: Any
    answer: Any = None
    state: RouterState | None = None


class RouterKeeper:
    """A handle on the routers of one cluster. Only `stop` waits for them."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._places: dict[str, _Place] = {}
        self._order: RouterOrder | None = None
        self._looked_at_s = float("-inf")

    def adopt(self) -> None:
        """Make those of an earlier controller's its own, also on hosts that shall have none any more."""
        hosts = {host.node_id: host for host in list_hosts()}
        for name in list_named_actors():
            node_id = name.removeprefix(self._name_on(""))
            if name != self._name_on(node_id) or node_id not in hosts or node_id in self._places:
                continue
            with contextlib.suppress(ValueError):  # it died meanwhile
                self._places[node_id] = _Place(hosts[node_id], ray.get_actor(name))

    def _name_on(self, node_id: str) -> str:
        return f"{self._cluster}/router@{node_id}"

    @property
    def states(self) -> tuple[tuple[str, RouterState | None], ...]:
        """By host address; None where nothing is known yet."""
        return tuple((place.host.address, place.state) for place in self._places.values())

    def keep(self, order: RouterOrder, now_s: float) -> list[str]:
        """Bring the routers nearer to the order; what happened, for a person."""
        if order != self._order:
            self._order = order
            for place in self._places.values():
                place.answer = place.state = None
        elif now_s - self._looked_at_s < PERIOD_S:
            return []
        self._looked_at_s = now_s
        wanted = {host.node_id: host for host in _chosen(order)}
        for node_id in [node_id for node_id in self._places if node_id not in wanted]:
            self._leave(self._places.pop(node_id))
        news = [text for place in self._places.values() if (text := self._hear(place)) is not None]
        self._places = {node_id: place for node_id, place in self._places.items() if place.actor is not None}
        for node_id, host in wanted.items():
            if node_id not in self._places:
                self._places[node_id] = _Place(host, self._actor(host))
        for place in self._places.values():
            if place.answer is None:
                place.answer = place.actor.serve.remote(order)
        return news

    def _hear(self, place: _Place) -> str | None:
        """Take in the answer, if it has come; a dead actor is forgotten."""
        if place.answer is None or not ray.wait([place.answer], timeout=0)[0]:
            return None
        before, answer, place.answer = place.state, place.answer, None
        try:
            state: RouterState = ray.get(answer)
        except RayError as error:
            place.actor = None
            return f"router on {place.host.address}: {describe_error(error)}"
        place.state = state
        if state.failure is not None and (before is None or before.failure != state.failure):
            return f"router on {place.host.address}: {state.failure}"
        if state.num_live is not None and (before is None or before.num_live is None):
            return f"router answers at {state.url}"
        return None

    def _actor(self, host: Host) -> Any:
        """A new one, or the one that an earlier controller created there."""
        return (
            ray.remote(RouterHost)
            .options(
                name=self._name_on(host.node_id),
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=0,
                max_concurrency=CALLS_AT_ONCE,
                scheduling_strategy=NodeAffinitySchedulingStrategy(host.node_id, soft=False),
            )
            .remote(host.address)
        )

    def _leave(self, place: _Place) -> None:
        """Stop a router that is not wanted any more; its actor ends by itself, with the last handle on it, or here."""
        place.actor.stop.remote()
        place.actor.__ray_terminate__.remote()

    def stop(self, timeout_s: float) -> None:
        """End all routers, those by force that take longer."""
        farewells = [place.actor.stop.remote() for place in self._places.values()]
        if farewells:
            ray.wait(farewells, num_returns=len(farewells), timeout=timeout_s)
        for place in self._places.values():
            ray.kill(place.actor, no_restart=True)
        self._places = {}


def _chosen(order: RouterOrder) -> list[Host]:
    hosts = list_hosts()
    return hosts if order.router.placement == "every-host" else [host for host in hosts if host.is_head]
