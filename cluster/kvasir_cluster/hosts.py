"""The hosts of a Ray cluster."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import ray

HEAD_RESOURCE = "node:__internal_head__"
"""What Ray lets only the head offer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One living host. offers: by Ray's names of resources."""

    node_id: str
    address: str
    name: str
    offers: Mapping[str, float]

    @property
    def is_head(self) -> bool:
        return HEAD_RESOURCE in self.offers


def list_hosts() -> list[Host]:
    """The head first, then by address."""
    nodes = cast(list[dict[str, Any]], ray.nodes())  # type: ignore[no-untyped-call]
    hosts = [
        Host(
            node_id=node["NodeID"],
            address=node["NodeManagerAddress"],
            name=node["NodeManagerHostname"],
            offers=node["Resources"],
        )
        for node in nodes
        if node["Alive"]
    ]
    return sorted(hosts, key=lambda host: (not host.is_head, host.address))


def own_address() -> str:
    """The address under which Ray knows the host of this process."""
    here = ray.get_runtime_context().get_node_id()
    return next(host.address for host in list_hosts() if host.node_id == here)
