"""Those that wait to be computed: in whose turn, how many at most, and until when."""

from bisect import insort
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass

from kvasir_protocol.errors import ServiceUnavailable
from kvasir_protocol.ids import RequestId
from kvasir_workers.fair_share import TokenCounters
from kvasir_workers.scheduling_policy import SchedulingPolicy
from kvasir_workers.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class LineBounds:
    """How long the line may be; None is without bound."""

    max_requests: int | None
    max_tokens: int | None

    def check(self, num_requests: int, num_tokens: int, num_new_tokens: int) -> None:
        """Raise ServiceUnavailable if one more with num_new_tokens is one too many. An empty line takes anything."""
        if self.max_requests is not None and num_requests >= self.max_requests:
            raise ServiceUnavailable(f"{num_requests} requests wait here already, of at most {self.max_requests}")
        if self.max_tokens is not None and num_requests and num_tokens + num_new_tokens > self.max_tokens:
            raise ServiceUnavailable(
                f"{num_tokens} tokens wait here already and the request has {num_new_tokens}; "
                f"at most {self.max_tokens} may wait"
            )


class WaitingLine:
    """Waiting sequences, by arrival. With counters the tenant that was served least comes first, and the policy
    orders only within a tenant."""

    def __init__(self, policy: SchedulingPolicy, counters: TokenCounters | None) -> None:
        self._policy = policy
        self._counters = counters
        self._by_id: dict[RequestId, Sequence] = {}
        self._by_tenant: dict[str, list[Sequence]] = {}
        self._with_deadline: set[Sequence] = set()
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._by_id.values())

    def find(self, request_id: RequestId) -> Sequence | None:
        return self._by_id.get(request_id)

    def add(self, sequence: Sequence) -> None:
        tenant = self._tenant_of(sequence)
        if tenant not in self._by_tenant and self._counters is not None:
            self._counters.enter(tenant, self._by_tenant)
        insort(self._by_tenant.setdefault(tenant, []), sequence, key=lambda waiting: waiting.arrival_index)
        self._by_id[sequence.request_id] = sequence
        self.num_tokens += sequence.num_tokens
        if sequence.give_up_at is not None and not sequence.num_generated:
            self._with_deadline.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        tenant = self._tenant_of(sequence)
        self._by_tenant[tenant].remove(sequence)
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]
            if self._counters is not None:
                self._counters.leave(tenant)
        del self._by_id[sequence.request_id]
        self.num_tokens -= sequence.num_tokens
        self._with_deadline.discard(sequence)

    def _tenant_of(self, sequence: Sequence) -> str:
        return sequence.request.tenant if self._counters is not None else ""

    def in_turn(self) -> Iterator[Sequence]:
        """Each in its turn, for as long as the caller asks; it may remove and charge those that it was given.

        Of tenants that were served alike, the one that has been in line for longest.
        """
        turns = {tenant: _one_by_one(self._policy.order(line)) for tenant, line in self._by_tenant.items()}
        while turns:
            tenant = min(turns, key=self._served)
            sequence = next(turns[tenant], None)
            if sequence is not None:
                yield sequence
            else:
                del turns[tenant]

    def _served(self, tenant: str) -> float:
        return self._counters[tenant] if self._counters is not None else 0.0

    def first(self) -> Sequence | None:
        return next(self.in_turn(), None)

    def first_of_tenant_outside(self, tenants: Collection[str]) -> Sequence | None:
        """The first of a tenant that is not one of these, if none in line was served less. Needs counters."""
        least = min(map(self._served, self._by_tenant), default=None)
        others = (tenant for tenant in self._by_tenant if tenant not in tenants and self._served(tenant) == least)
        tenant = next(others, None)
        return self._policy.order(self._by_tenant[tenant])[0] if tenant is not None else None

    def overdue(self, now: float) -> list[Sequence]:
        """Those that should have had their first token by now, in order of arrival."""
        late = [s for s in self._with_deadline if s.give_up_at is not None and s.give_up_at <= now]
        return sorted(late, key=lambda sequence: sequence.arrival_index)

    def audit(self) -> None:
        """Check that all indexes hold the same sequences. Raises AssertionError."""
        listed = [sequence for line in self._by_tenant.values() for sequence in line]
        assert len(listed) == len(self) and set(listed) == set(self), "the line and its index differ"
        assert all(self._by_tenant.values()), "a tenant without requests is in line"
        assert self._with_deadline <= set(listed), "somebody with a deadline is not in line"
        num_tokens = sum(sequence.num_tokens for sequence in listed)
        assert self.num_tokens == num_tokens, f"{self.num_tokens} tokens counted in line, {num_tokens} are there"


def _one_by_one(line: Many[Sequence]) -> Iterator[Sequence]:
    """The items of a list, though the caller may take out those that it was given: a copy of a long line takes
    longer than the rest of a plan."""
    index = 0
    while index < len(line):
        sequence = line[index]
        yield sequence
        if index < len(line) and line[index] is sequence:
            index += 1
