"""How busy each replica is: what this router gave it, and what it says itself."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kvasir_protocol.events import ReplicaStats
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ReplicaAddress, Role
from kvasir_router.routing.rates import UNKNOWN, ReplicaRates


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """One live replica as a candidate.

    num_inflight: this router's streams there, known at once; num_awaited of them have their prompt computed elsewhere.
    num_requests: of all routers, half a second old.
    page_usage: used share of the KV pages, 0 to 1. prefill_line: lengths of this router's prompts that are not computed
    yet, in tokens.
    """

    replica_id: ReplicaId
    role: Role
    num_inflight: int
    num_awaited: int = 0
    num_requests: int = 0
    page_usage: float = 0.0
    prefill_line: tuple[int, ...] = ()
    rates: ReplicaRates = UNKNOWN

    @property
    def num_streams(self) -> int:
        """Our own count is ahead of the replica's, which knows other routers: the larger is nearer the truth."""
        return max(self.num_inflight, self.num_requests)

    @property
    def num_decoding(self) -> int:
        """Streams that wait for each step there; the replica counts none that it only reserved pages for."""
        return max(self.num_inflight - self.num_awaited, self.num_requests)

    @property
    def prefill_tokens(self) -> int:
        """All that are in line."""
        return sum(self.prefill_line)


class InflightCounter:
    """Counts this router's streams per replica, from dispatch until they let go of the replica."""

    def __init__(self) -> None:
        self._counts: Counter[ReplicaId] = Counter()
        self._awaited: Counter[ReplicaId] = Counter()
        self._prefill_lines: dict[ReplicaId, list[int]] = {}

    def prefill_line(self, replica_id: ReplicaId) -> tuple[int, ...]:
        """Tokens of each prompt that the replica has not computed yet."""
        return tuple(self._prefill_lines.get(replica_id, ()))

    @contextmanager
    def prefilling(self, replica_id: ReplicaId, num_tokens: int) -> Iterator[None]:
        """The replica computes a prompt for as long as the block runs."""
        line = self._prefill_lines.setdefault(replica_id, [])
        line.append(num_tokens)
        try:
            yield
        finally:
            line.remove(num_tokens)
            if not line:
                del self._prefill_lines[replica_id]

    def num_awaited(self, replica_id: ReplicaId) -> int:
        """Streams of the replica whose prompt another one computes."""
        return self._awaited[replica_id]

    @contextmanager
    def awaited(self, replica_id: ReplicaId) -> Iterator[None]:
        """Another replica computes the prompt of one of its streams for as long as the block runs."""
        with _counted(self._awaited, replica_id):
            yield

    def __getitem__(self, replica_id: ReplicaId) -> int:
        return self._counts[replica_id]

    @contextmanager
    def counted(self, replica_id: ReplicaId) -> Iterator[None]:
        """One stream at the replica for as long as the block runs."""
        with _counted(self._counts, replica_id):
            yield


@contextmanager
def _counted(counts: Counter[ReplicaId], replica_id: ReplicaId) -> Iterator[None]:
    counts[replica_id] += 1
    try:
        yield
    finally:
        counts[replica_id] -= 1
        if not counts[replica_id]:
            del counts[replica_id]


def replica_load(
    address: ReplicaAddress, inflight: InflightCounter, stats: ReplicaStats | None, rates: ReplicaRates = UNKNOWN
) -> ReplicaLoad:
    """Join all sources; stats None: the replica has not told yet."""
    known = ReplicaLoad(
        replica_id=address.replica_id,
        role=address.role,
        num_inflight=inflight[address.replica_id],
        num_awaited=inflight.num_awaited(address.replica_id),
        prefill_line=inflight.prefill_line(address.replica_id),
        rates=rates,
    )
    if stats is None:
        return known
    return replace(
        known,
        num_requests=stats.num_running + stats.num_waiting,
        page_usage=stats.num_used_pages / max(stats.num_pages, 1),
    )
