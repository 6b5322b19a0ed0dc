"""How busy each replica is: what this router gave it, and what it says itself."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kvasir_protocol.events import ReplicaStats
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ReplicaAddress, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """One live replica as a candidate.

    num_inflight: this router's streams there, known at once. num_requests: of all routers, half a second old.
    page_usage: used share of the KV pages, 0 to 1.
    """

    replica_id: ReplicaId
    role: Role
    num_inflight: int
    num_requests: int = 0
    page_usage: float = 0.0


class InflightCounter:
    """Counts this router's streams per replica, from dispatch until they let go of the replica."""

    def __init__(self) -> None:
        self._counts: Counter[ReplicaId] = Counter()

    def __getitem__(self, replica_id: ReplicaId) -> int:
        return self._counts[replica_id]

    @contextmanager
    def counted(self, replica_id: ReplicaId) -> Iterator[None]:
        """One stream at the replica for as long as the block runs."""
        self._counts[replica_id] += 1
        try:
            yield
        finally:
            self._counts[replica_id] -= 1
            if not self._counts[replica_id]:
                del self._counts[replica_id]


def replica_load(address: ReplicaAddress, num_inflight: int, stats: ReplicaStats | None) -> ReplicaLoad:
    """Join both sources; stats None: the replica has not told yet."""
    if stats is None:
        return ReplicaLoad(replica_id=address.replica_id, role=address.role, num_inflight=num_inflight)
    return ReplicaLoad(
        replica_id=address.replica_id,
        role=address.role,
        num_inflight=num_inflight,
        num_requests=stats.num_running + stats.num_waiting,
        page_usage=stats.num_used_pages / max(stats.num_pages, 1),
    )
