"""Who waits for a grammar to be compiled: tenants in turn, each with a bounded line of its own."""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from kvasir_protocol.errors import ServiceUnavailable

Item = TypeVar("Item", bound=Hashable)


class CompileLine(Generic[Item]):
    """Items to be taken once each, round-robin between the tenants that wait for them. Not thread-safe.

        loud   a b c d ...
        quiet  x             ->  a x b c d ...

    An item that several tenants wait for is in the line of each, and comes when the first of them has its turn.
    """

    def __init__(self, max_per_tenant: int, max_in_all: int) -> None:
        self._max_per_tenant = max_per_tenant
        self._max_in_all = max_in_all
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()
        self._waiting: set[Item] = set()

    def __contains__(self, item: Item) -> bool:
        return item in self._waiting

    def add(self, tenant: str, item: Item) -> None:
        """Put an item into a tenant's line, if it is not there yet. Raises ServiceUnavailable if that is too long."""
        line = self._lines.get(tenant, deque())
        if item in line:
            self._waiting.add(item)
            return
        if len(line) >= self._max_per_tenant:
            raise ServiceUnavailable(
                f"{len(line)} grammars of yours are in line to be compiled, the most there may be; send it again later"
            )
        if sum(map(len, self._lines.values())) >= self._max_in_all:
            raise ServiceUnavailable(f"{self._max_in_all} grammars are in line to be compiled; send it again later")
        line.append(item)
        self._lines[tenant] = line
        self._waiting.add(item)

    def take(self) -> Item | None:
        """The oldest of the tenant whose turn it is, who then goes to the end; None if nobody waits."""
        while self._lines:
            tenant, line = self._lines.popitem(last=False)
            item = line.popleft()
            if item in self._waiting:
                self._waiting.remove(item)
                if line:
                    self._lines[tenant] = line
                return item
            if line:  # another tenant's turn has come for that one: this tenant still has its own
                self._lines[tenant] = line
                self._lines.move_to_end(tenant, last=False)
        return None
